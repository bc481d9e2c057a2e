package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// FuzzPage: whatever a file says, it is refused or makes a page without values that are not numbers.
func FuzzPage(f *testing.F) {
	for _, v := range []any{
		quantization("a", 1, "Q4_K", 1).Quantization, evaluation("a", 1, 5, 0.1).Evaluation, taskEvaluation().Task,
	} {
		data, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"model":"m","linears":[{"name":"blk.0.attn_q.weight","output_error":1e-300,"kl_divergence":{"mean":1}}],` +
		`"checklist":[],"inputs":[{"name":"i","histogram":[1,2],"histogram_range":2,"feature_range":{"min":1,"max":2}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := parse(data)
		if err != nil {
			return
		}
		in.Path = "x.json"
		inputs := []*Input{in}
		if in.Quantization == nil {
			inputs = append(inputs, in) // two make a picture
		}
		var b bytes.Buffer
		if err := Write(&b, inputs); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"NaN", "Inf"} {
			if strings.Contains(b.String(), bad) && !bytes.Contains(data, []byte(bad)) {
				t.Errorf("%s on the page", bad)
			}
		}
	})
}
