package pipeline

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
)

// metered adds up what a run says of its progress.
type metered struct {
	silent
	total, done, skipped int64
	expected             time.Duration
}

func (c *metered) Stage(_ string, total int64) { c.total, c.done, c.skipped = total, 0, 0 }
func (c *metered) Expect(d time.Duration)      { c.expected = d }
func (c *metered) Skip(n int64)                { c.skipped += n }
func (c *metered) Add(n int64)                 { c.done += n }

// TestProgress: a run does all that it says it will, in what the model of cost predicts, expects what the speeds that it is given make of
// that, and writes the same with any speeds; what was done before it skips.
func TestProgress(t *testing.T) {
	tm := testmodel.New("llama")
	src := tm.Source()
	p, err := NewPlan(src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn})
	if err != nil {
		t.Fatal(err)
	}
	m, set := openModel(t, src), sequences(tm, 16, 32)
	var files [][]byte
	for _, speeds := range []*Speeds{nil, {Products: 1e6, Float32: 1e5, Weight: 1e-3, Column: 1e-6, Feature: 1e-6, Disk: 1}} {
		c := &metered{}
		path := filepath.Join(t.TempDir(), "out.gguf")
		if _, err := Run(t.Context(), src, p, path, Options{Calib: set, Progress: c, Speeds: speeds}); err != nil {
			t.Fatal(err)
		}
		if ratio := float64(c.done) / float64(c.total); !(math.Abs(ratio-1) < 0.01) || c.skipped != 0 {
			t.Errorf("%d done of %d, %d skipped", c.done, c.total, c.skipped)
		}
		if speeds == nil {
			if c.expected != 0 {
				t.Errorf("%v expected of a machine that nobody has measured", c.expected)
			}
		} else {
			cost := p.Cost(m, set.Tokens(), set.SeqLen, 1, *speeds)
			var seconds float64 // of what the stage does: all but the disk
			for _, ph := range cost.Phases {
				if ph.Name != costDisk {
					seconds += ph.Seconds
				}
			}
			if ratio := c.expected.Seconds() / seconds; !(ratio > 0.9 && ratio < 1.1) {
				t.Errorf("%v expected, %g s predicted", c.expected, seconds)
			}
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, data)
	}
	if string(files[0]) != string(files[1]) {
		t.Error("measured speeds change the file")
	}
}
