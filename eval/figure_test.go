package eval_test

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/llmq/llmq/eval"
)

func TestFigure(t *testing.T) {
	for f, want := range map[eval.Figure]string{
		1.5: "1.5", 0: "0", eval.Figure(math.Inf(1)): "null", eval.Figure(math.Inf(-1)): "null", eval.Figure(math.NaN()): "null",
		math.MaxFloat64: "1.7976931348623157e+308",
	} {
		b, err := json.Marshal(struct{ F eval.Figure }{f})
		if err != nil || string(b) != `{"F":`+want+"}" {
			t.Errorf("%v: %s, %v", f, b, err)
		}
		var back struct{ F eval.Figure }
		if err := json.Unmarshal(b, &back); err != nil || back.F.Finite() != f.Finite() || f.Finite() && back.F != f {
			t.Errorf("%v comes back as %v, %v", f, back.F, err)
		}
	}
	if err := json.Unmarshal([]byte(`"x"`), new(eval.Figure)); err == nil {
		t.Error("a string is read as a figure")
	}
}
