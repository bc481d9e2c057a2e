package pipeline

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// asked is a work folder that notes how much room it is asked for, and has none.
type asked struct {
	store.Folder
	bytes int64
}

var errNoRoom = errors.New("no room")

func (a *asked) Room(bytes int64) error {
	a.bytes = bytes
	return errNoRoom
}

// TestRoomTwice: Hessians of outputs need room in the work folder and in their temporary file, on one disk both.
func TestRoomTwice(t *testing.T) {
	tm := testmodel.New("llama")
	opt := Options{Calib: sequences(tm, 12, 24)}
	room := func(o OutputHessian, work store.Folder) (bytes, temporary int64) {
		t.Helper()
		p, err := NewPlan(tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_K, OutputHessian: o})
		if err != nil {
			t.Fatal(err)
		}
		a := &asked{Folder: work}
		opt.Work = a
		if _, err := Run(t.Context(), tm.Source(), p, filepath.Join(t.TempDir(), "out.gguf"), opt); !errors.Is(err, errNoRoom) {
			t.Fatal(err)
		}
		_, m := planned(t, llamaOf(tm), o)
		temporary = p.gradientNeeds(m, opt.Calib.Tokens(), opt.Calib.SeqLen, 0).disk
		return a.bytes, temporary
	}
	here, err := store.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	off, _ := room(OutputHessianOff, here)
	on, temporary := room(OutputHessianOn, here)
	elsewhere, _ := room(OutputHessianOn, nowhere{here})
	opt.Engine = &engine.Local{}
	for _, o := range []OutputHessian{OutputHessianOff, OutputHessianOn} {
		alone := map[OutputHessian]int64{OutputHessianOff: off, OutputHessianOn: on}[o]
		if divided, _ := room(o, here); divided <= alone {
			t.Errorf("output Hessians %v: %d bytes where the work is divided, %d where it is not", o, divided, alone)
		}
	}
	opt.Engine = nil
	if temporary == 0 || on != elsewhere+temporary || elsewhere <= off {
		t.Errorf("%d bytes on one disk, %d on two, %d of temporary file, %d without", on, elsewhere, temporary, off)
	}
}

// nowhere is a folder on a disk of its own.
type nowhere struct{ store.Folder }

func (nowhere) Path() string { return "s3://bucket" }

// llamaOf is a test model's checkpoint.
func llamaOf(m *testmodel.Model) *headers { return &headers{*m.Source()} }
