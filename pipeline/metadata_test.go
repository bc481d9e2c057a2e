package pipeline

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
)

// TestCalibrationMetadata plans, runs and reads back a file that says what it was calibrated on.
func TestCalibrationMetadata(t *testing.T) {
	tm := testmodel.New("qwen2")
	src, set := tm.Source(), testSet(tm)
	p, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.Q4_0})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again changes nothing
		if p, err = p.With(set.Metadata()); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	if _, err := Run(t.Context(), src, p, path, Options{Calib: set}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != p.File.Size() {
		t.Errorf("%d bytes, planned %d", info.Size(), p.File.Size())
	}
	f := open(t, path)
	if v, _ := f.Meta("llmq.calibration.sha256"); v != set.SHA256() {
		t.Errorf("SHA-256 %v, want %s", v, set.SHA256())
	}
	if v, _ := f.Meta("llmq.calibration.sequences"); v != uint32(len(set.Sequences)) {
		t.Errorf("%v sequences, want %d", v, len(set.Sequences))
	}
	if v, ok := f.Meta("general.architecture"); !ok {
		t.Errorf("architecture %v", v)
	}
	if _, ok := src.Meta("llmq.calibration.sha256"); ok {
		t.Error("the source's metadata changed")
	}
}
