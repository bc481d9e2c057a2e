package profile_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/profile"
	"github.com/llmq/llmq/store"
)

// mortal is a work folder that fails when so many values have been kept.
type mortal struct {
	*store.Dir
	left int
}

var errKilled = errors.New("killed")

func (m *mortal) Create(name string) (store.Writer, error) {
	if m.left == 0 {
		return nil, errKilled
	}
	m.left--
	return m.Dir.Create(name)
}

// layers counts those that are profiled.
type layers struct{ n int }

func (l *layers) Stage(string, int64) {}
func (l *layers) Add(int64)           {}
func (l *layers) Done()               {}
func (l *layers) Item(name string) {
	if strings.HasPrefix(name, "layer") {
		l.n++
	}
}

// TestResume kills profiles after every value that they keep, and has each go on: it ends as an undisturbed one, and does no
// more than one layer twice.
func TestResume(t *testing.T) {
	set := testSet(testmodel.New("qwen3"), 2)
	run := func(work string, left int) (string, int, error) {
		l := &layers{}
		opt := profile.Options{Type: ggml.Q4_0, KLLinears: 0, Progress: l}
		if work != "" {
			d, err := store.OpenDir(work, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			opt.Work = &mortal{d, left}
		}
		p, err := profile.Run(t.Context(), testmodel.Experts(), set, opt)
		if err != nil {
			return "", l.n, err
		}
		p.Seconds = 0
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(b), l.n, nil
	}
	want, all, err := run("", -1)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		work := filepath.Join(t.TempDir(), "work")
		_, first, err := run(work, n)
		if err == nil {
			if n != 2*all-1 {
				t.Errorf("%d values are kept of %d layers", n, all)
			}
			break
		}
		got, second, err := run(work, -1)
		if err != nil || got != want {
			t.Errorf("killed after %d values: %v\n%s\nwant\n%s", n, err, got, want)
		}
		if first+second > all+1 {
			t.Errorf("killed after %d values: %d layers, then %d, of %d", n, first, second, all)
		}
		if left, _ := filepath.Glob(filepath.Join(work, "*.value")); len(left) > 0 {
			t.Errorf("%q are left", left)
		}
	}
}
