package bench

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/internal/testmodel"
)

// TestFetchedExperts times a model whose experts' weights are fetched when they are used, and one where that fails.
func TestFetchedExperts(t *testing.T) {
	if testing.Short() {
		t.Skip("measures times")
	}
	defer func(was time.Duration) { least = was }(least)
	least = 0
	src := &testmodel.Copying{Source: testmodel.Experts()}
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	timed := map[string]bool{}
	report := func(op Operation) { timed[op.Name] = op.Unpack > 0 }
	if err := Model(t.Context(), m, []int32{1, 2, 3}, report); err != nil {
		t.Fatal(err)
	}
	if name := "blk.0.ffn_up_exps.weight"; !timed[name] {
		t.Errorf("no time of unpacking %s in %v", name, timed)
	}
	boom := errors.New("boom")
	src.Fails = func(name string) error {
		if strings.Contains(name, "ffn_up_exps") {
			return boom
		}
		return nil
	}
	if err := Model(t.Context(), m, []int32{1, 2, 3}, report); !errors.Is(err, boom) {
		t.Errorf("weights that cannot be fetched: %v", err)
	}
}
