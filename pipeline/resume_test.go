package pipeline

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// errKilled ends a run where a killed process would.
var errKilled = errors.New("killed")

// mortal is a work folder whose process is killed when some more values have been kept: as the next one is begun, or, when
// half of it is written.
type mortal struct {
	*store.Dir
	left int // values until the end; negative: for ever
	kept int
	// atDelete: the process is killed before it removes anything behind the last value.
	atDelete bool
}

func (m *mortal) Delete(names ...string) error {
	if m.left == 0 && m.atDelete {
		return errKilled
	}
	return m.Dir.Delete(names...)
}

func (m *mortal) Create(name string) (store.Writer, error) {
	w, err := m.Dir.Create(name)
	return &mortalWriter{w, m}, err
}

type mortalWriter struct {
	store.Writer
	m *mortal
}

func (w *mortalWriter) Write(p []byte) (int, error) {
	if w.m.left == 0 {
		w.Writer.Write(p[:len(p)/2])
		return 0, errKilled
	}
	return w.Writer.Write(p)
}

func (w *mortalWriter) Commit() error {
	if w.m.left == 0 {
		return errKilled
	}
	w.m.left--
	w.m.kept++
	return w.Writer.Commit()
}

// counter counts the layers that are worked on.
type counter struct {
	silent
	layers     int
	quantizing bool // not validating
}

func (c *counter) Stage(name string, _ int64) { c.quantizing = strings.Contains(name, "quantize") }

func (c *counter) Item(name string) {
	if c.quantizing && strings.HasPrefix(name, "layer") && !strings.HasSuffix(name, "before") {
		c.layers++
	}
}

// job is a run that can be done with a work folder.
type job struct {
	src Source
	r   Recipe
	opt Options
}

// in does the job in a work folder, until so many values have been kept, and returns what a user sees of it. left < 0: to
// its end.
func (j job) in(t *testing.T, work string, left int) (file [sha256.Size]byte, rep *Report, layers, kept int, err error) {
	t.Helper()
	return j.with(t, work, &mortal{left: left}, nil)
}

// by is in with an engine, which it makes of the work folder, if that is not nil.
func (j job) by(t *testing.T, work string, left int, make func(work *store.Dir) engine.Engine) (file [sha256.Size]byte, rep *Report,
	layers, kept int, err error) {
	t.Helper()
	return j.with(t, work, &mortal{left: left}, make)
}

func (j job) with(t *testing.T, work string, m *mortal, make func(work *store.Dir) engine.Engine) (file [sha256.Size]byte, rep *Report,
	layers, kept int, err error) {
	t.Helper()
	p, err := NewPlan(j.src, j.r)
	if err != nil {
		t.Fatal(err)
	}
	opt := j.opt
	c := &counter{}
	opt.Progress = c
	if work != "" {
		m.Dir = openWork(t, work, j.src, p, opt)
		defer m.Dir.Close()
		opt.Work = m
		if make != nil {
			opt.Engine = make(m.Dir)
		}
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	rep, err = Run(t.Context(), j.src, p, path, opt)
	if err == nil {
		rep.Seconds, rep.Output, rep.Plan = 0, "", nil
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file = sha256.Sum256(b)
	}
	return file, rep, c.layers, m.kept, err
}

func openWork(t *testing.T, path string, src Source, p *Plan, opt Options) *store.Dir {
	t.Helper()
	parts, err := WorkParts(src, p, Budget{}, opt)
	if err != nil {
		t.Fatal(err)
	}
	d, err := store.OpenDir(path, parts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// values lists what a work folder keeps.
func values(t *testing.T, work string) (names []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(work, "*.value"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func reportJSON(t *testing.T, rep *Report) string {
	t.Helper()
	b, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// jobs are runs with everything that a layer hands to later ones.
func jobs(t *testing.T) map[string]job {
	tm := testmodel.New("llama")
	small := sequences(tm, 12, 24)
	src, set, held := validated(t)
	quick := gptq.Options{NoRefine: true}
	return map[string]job{
		"gptq":     {tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_K}, Options{Calib: small}},
		"head":     {tm.Source(), Recipe{Method: WithGPTQ(GPTQ, quick), Type: ggml.Q4_0, Output: ggml.Q8_0, BiasCorrection: true}, Options{Calib: small}},
		"awq":      {tm.Source(), Recipe{Method: WithGPTQ(AWQGPTQ, quick), Type: ggml.Q4_0}, Options{Calib: small}},
		"fallback": {tm.Source(), Recipe{Method: RTN, Type: ggml.Q4_0}, Options{Calib: small, Fallback: Fallback{MaxError: 0.0055}}},
		"int8":     {tm.Source(), Recipe{Method: Int8, Type: ggml.Q8_0}, Options{Calib: small, Memory: 1}},
		"experts": {testmodel.Experts(), Recipe{Method: WithGPTQ(GPTQ, quick), Type: ggml.Q4_0},
			Options{Calib: sequences(testmodel.New("qwen3"), 12, 24)}},
		"batches": {tm.Source(), Recipe{Method: WithGPTQ(GPTQ, quick), Type: ggml.Q4_0, OutputHessian: OutputHessianAuto}, Options{Calib: sequences(tm, 22, 32)}},
		"auto": {src, Recipe{Method: WithGPTQ(Auto, quick), Type: ggml.Q4_0}, Options{Calib: set,
			Validate: Validate{Tokens: held, MaxIncrease: 0.004}}},
	}
}

// TestResume kills runs after every value that they keep, and has each done again in the same folder: the file and the
// report are those of a run without one, and no more than one layer is done twice.
func TestResume(t *testing.T) {
	for name, j := range jobs(t) {
		t.Run(name, func(t *testing.T) {
			if name == "batches" { // 7 of 3 or 4 sequences, each a shard, whose hidden states are values of their own
				smallUnits(t)
			}
			want, wantReport, layers, _, err := j.in(t, "", -1)
			if err != nil {
				t.Fatal(err)
			}
			if v := wantReport.Validation; v != nil && len(v.Runs) < 2 {
				t.Error("the run does not start over")
			}
			if name == "fallback" && len(wantReport.Int8Fallbacks) == 0 {
				t.Error("nothing falls back")
			}
			if testing.Short() && name != "gptq" && name != "head" && name != "batches" {
				t.Skip("what the others do, in other ways")
			}
			from, step := 0, 1
			switch name { // those that take long, at some of the places
			case "auto":
				from, step = 3, 5
			case "awq", "fallback":
				from, step = 1, 2
			case "batches":
				from, step = 1, 3
			}
			for n := from; ; n += step {
				work := filepath.Join(t.TempDir(), "work")
				_, _, first, kept, err := j.in(t, work, n)
				if err == nil { // there are no more values than n
					if n < 2 {
						t.Fatalf("only %d values are kept", n)
					}
					break
				}
				if !errors.Is(err, errKilled) || kept != n {
					t.Fatalf("killed after %d values: %d are kept, %v", n, kept, err)
				}
				got, rep, second, _, err := j.in(t, work, -1)
				if err != nil {
					t.Fatalf("killed after %d values: %v", n, err)
				}
				if got != want {
					t.Errorf("killed after %d values: another file", n)
				}
				if got, want := reportJSON(t, rep), reportJSON(t, wantReport); got != want {
					t.Errorf("killed after %d values: the report is\n%s\nwant\n%s", n, got, want)
				}
				if first+second > layers+1 {
					t.Errorf("killed after %d values: %d layers, then %d, of %d", n, first, second, layers)
				}
				if left := values(t, work); len(left) > 0 {
					t.Errorf("killed after %d values: %q are left in the end", n, left)
				}
			}
		})
	}
}

// TestResumeOften kills one run again and again, each time a layer later.
func TestResumeOften(t *testing.T) {
	j := jobs(t)["gptq"]
	want, _, _, _, err := j.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(t.TempDir(), "work")
	for n := 0; ; n++ {
		got, _, _, _, err := j.in(t, work, 2) // a layer, and the hidden states behind it
		if errors.Is(err, errKilled) && n < 20 {
			continue
		}
		if err != nil || got != want {
			t.Fatalf("after %d runs: %v, same file %v", n, err, got == want)
		}
		break
	}
}

// TestResumeDamaged: whatever is damaged or missing in the folder is made again.
func TestResumeDamaged(t *testing.T) {
	j := jobs(t)["head"]
	want, _, layers, _, err := j.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func(b []byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/3] ^= 4; return b },
		"trailer": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)-7] },
		"empty":   func(b []byte) []byte { return nil },
		"longer":  func(b []byte) []byte { return append(b, 0) },
	}
	before := filepath.Join(t.TempDir(), "work")
	if _, _, _, _, err := j.in(t, before, 1+2*(layers-1)); !errors.Is(err, errKilled) { // what is converted, layers, and hidden states behind each
		t.Fatal(err)
	}
	names := values(t, before)
	if len(names) != 1+layers-1+1 {
		t.Fatalf("the folder holds %q", names)
	}
	partial := filepath.Join(before, "run1-output.partial")
	names = append(names, partial)
	for what, damage := range damages {
		for i, name := range names {
			if i > 0 && what != "flipped" && name != partial {
				continue
			}
			work := filepath.Join(t.TempDir(), "work")
			if err := os.CopyFS(work, os.DirFS(before)); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(work, filepath.Base(name))
			b, err := os.ReadFile(file)
			if err == nil {
				err = os.WriteFile(file, damage(b), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			got, _, _, _, err := j.in(t, work, -1)
			if err != nil || got != want {
				t.Errorf("%s %s: %v, same file %v", what, filepath.Base(name), err, got == want)
			}
		}
	}
	// Each part of the partial output.
	info, err := os.Stat(partial)
	if err != nil {
		t.Fatal(err)
	}
	const places = 12
	for i := range places {
		work := filepath.Join(t.TempDir(), "work")
		if err := os.CopyFS(work, os.DirFS(before)); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(work, filepath.Base(partial)), os.O_RDWR, 0)
		if err == nil {
			_, err = f.WriteAt([]byte("not these"), (info.Size()-9)*int64(i)/(places-1))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _, _, err := j.in(t, work, -1); err != nil || got != want {
			t.Errorf("place %d of the partial output: %v, same file %v", i, err, got == want)
		}
	}
	work := filepath.Join(t.TempDir(), "work") // none
	if err := errors.Join(os.CopyFS(work, os.DirFS(before)), os.Remove(filepath.Join(work, filepath.Base(partial)))); err != nil {
		t.Fatal(err)
	}
	if got, _, _, _, err := j.in(t, work, -1); err != nil || got != want {
		t.Errorf("without the partial output: %v, same file %v", err, got == want)
	}
	// A value under another's name.
	if err := os.Rename(names[0], names[1]); err != nil {
		t.Fatal(err)
	}
	if got, _, _, _, err := j.in(t, before, -1); err != nil || got != want {
		t.Errorf("foreign: %v, same file %v", err, got == want)
	}
}

// lost is a source that has some tensors no more.
type lost struct {
	*testmodel.Source
	has func(name string) bool
}

func (s lost) Tensor(name string) (*ggml.Tensor, error) {
	if !s.has(name) {
		return nil, fmt.Errorf("%s is gone", name)
	}
	return s.Source.Tensor(name)
}

// measuredWork notes the most that its values take.
type measuredWork struct {
	*mortal
	t    *testing.T
	most int64
}

func (m *measuredWork) Delete(names ...string) error { // before which there is most
	var bytes int64
	for _, name := range values(m.t, m.Path()) {
		info, err := os.Stat(name)
		if err != nil {
			m.t.Fatal(err)
		}
		bytes += info.Size()
	}
	m.most = max(m.most, bytes)
	return m.mortal.Delete(names...)
}

// inTheWay puts a file where the output is to be when that is under way.
type inTheWay struct {
	silent
	path string
}

func (p inTheWay) Item(name string) {
	if strings.HasPrefix(name, "layer") {
		os.WriteFile(p.path, nil, 0o644)
	}
}

// TestResumeLost: a run that goes on needs nothing of what it has done, be it embeddings, layers or a head that nothing calibrates, and its
// values take what Needs.Work says, with little for what is noted.
func TestResumeLost(t *testing.T) {
	tm := testmodel.New("llama")
	r := Recipe{Method: WithGPTQ(GPTQ, gptq.Options{NoRefine: true}), Type: ggml.Q4_0, Embedding: ggml.Q8_0, OutputHessian: OutputHessianOff}
	opt := Options{Calib: sequences(tm, 12, 24)}
	want, _, _, _, err := job{tm.Source(), r, opt}.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	for n, gone := range map[int][]string{ // after so many values: what is converted, a layer, the states behind it, the last layer, the head
		3: {"token_embd.", "blk.0."},
		4: {"token_embd.", "blk.0.", "blk.1."},
		5: {"token_embd.", "blk.0.", "blk.1.", "output."},
	} {
		work, path := filepath.Join(t.TempDir(), "work"), filepath.Join(t.TempDir(), "out.gguf")
		run := func(src Source, left int) (most int64, err error) {
			p, err := NewPlan(src, r)
			if err != nil {
				t.Fatal(err)
			}
			d := openWork(t, work, tm.Source(), p, opt)
			defer d.Close()
			m := &measuredWork{mortal: &mortal{Dir: d, left: left}, t: t}
			opt := opt
			opt.Work = m
			if n == 5 && left > 0 { // there are no more values
				opt.Progress = inTheWay{path: path}
			}
			_, err = Run(t.Context(), src, p, path, opt)
			return m.most, err
		}
		most, err := run(tm.Source(), n)
		if n == 5 && errors.Is(err, fs.ErrExist) {
			err = os.Remove(path)
		} else if errors.Is(err, errKilled) {
			err = nil
		}
		if err != nil {
			t.Fatalf("killed after %d values: %v", n, err)
		}
		has := func(name string) bool {
			small := strings.HasSuffix(name, "_norm.weight") // a family's code looks at them
			return small || !slices.ContainsFunc(gone, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		}
		more, err := run(lost{tm.Source(), has}, -1)
		if err != nil {
			t.Fatalf("killed after %d values: %v", n, err)
		}
		b, err := os.ReadFile(path)
		if err != nil || sha256.Sum256(b) != want {
			t.Errorf("killed after %d values: another file, %v", n, err)
		}
		p, m := planned(t, llamaOf(tm), OutputHessianOff)
		const noted = 32 << 10
		if needs := p.Needs(m, opt.Calib.Tokens(), opt.Calib.SeqLen, 0).Work; max(most, more) > needs+noted || max(most, more) < needs/2 {
			t.Errorf("killed after %d values: the folder holds %d bytes of values at most, then %d; %d are predicted", n, most, more, needs)
		}
	}
}

// TestWorkParts: what changes a run's bytes is told by name, and what does not is not.
func TestWorkParts(t *testing.T) {
	j := jobs(t)["gptq"]
	parts := func(change func(j *job)) []string {
		c := j
		set := *j.opt.Calib
		c.opt.Calib = &set
		change(&c)
		p, err := NewPlan(c.src, c.r)
		if err != nil {
			t.Fatal(err)
		}
		list, err := WorkParts(c.src, p, Budget{}, c.opt)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, part := range list {
			s = append(s, part.What+" "+part.Digest)
		}
		return s
	}
	same := parts(func(*job) {})
	for want, changes := range map[string][]func(j *job){
		"": {
			func(j *job) { j.opt.Memory = 1 },
			func(j *job) { j.src = testmodel.New("llama").Source() },
			func(j *job) { j.opt.Overwrite = true },
		},
		"model": {
			func(j *job) {
				src := testmodel.New("llama").Source()
				for i := range src.List { // a row of one tensor
					if src.List[i].Name == "blk.1.ffn_up.weight" {
						src.List[i].Data = slices.Clone(src.List[i].Data)
						src.List[i].Data[1] ^= 1
					}
				}
				j.src = src
			},
		},
		"recipe": {
			func(j *job) { j.r.Type = ggml.Q4_0 },
			func(j *job) { j.r.Method = AWQGPTQ },
			func(j *job) { j.opt.NoCorrection = true },
			func(j *job) { j.opt.Fallback.MaxError = 0.1 },
		},
		"calibration text": {
			func(j *job) { j.opt.Calib.Sequences = j.opt.Calib.Sequences[1:] },
			func(j *job) { j.opt.Validate.Tokens = j.opt.Calib.Sequences[0] },
		},
	} {
		for i, change := range changes {
			var differ []string
			for k, s := range parts(change) {
				if s != same[k] {
					differ = append(differ, strings.Join(strings.Fields(s)[:len(strings.Fields(s))-1], " "))
				}
			}
			if got := strings.Join(differ, ", "); got != want {
				t.Errorf("change %d to %q: %q differ", i, want, fmt.Sprint(got))
			}
		}
	}
}

// TestResumeAssign kills the measuring for a budget after every value that it keeps: the same types are chosen, and no
// more than one layer is measured twice.
func TestResumeAssign(t *testing.T) {
	tm := testmodel.New("llama3-tied")
	src, r := tm.Source(), Recipe{Method: RTN}
	r.Type = ggml.Q4_K
	assign := func(work string, left int) (*Assignment, int, error) {
		p, err := NewPlan(src, r)
		if err != nil {
			t.Fatal(err)
		}
		c := &counter{quantizing: true}
		opt := Options{Calib: sequences(tm, 4, 16), Progress: measured{c}}
		if work != "" {
			d := openWork(t, work, src, p, opt)
			defer d.Close()
			opt.Work = &mortal{Dir: d, left: left}
		}
		p, err = Assign(t.Context(), src, p, Budget{MaxBPW: 5}, t.TempDir(), opt)
		if err != nil {
			return nil, c.layers, err
		}
		p.Assignment.Seconds = 0
		return p.Assignment, c.layers, nil
	}
	want, layers, err := assign("", -1)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		work := filepath.Join(t.TempDir(), "work")
		_, first, err := assign(work, n)
		if err == nil {
			if n < 5 {
				t.Errorf("only %d values are kept", n)
			}
			break
		}
		got, second, err := assign(work, -1)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("killed after %d values: %+v, %v; want %+v", n, got, err, want)
		}
		if first+second > layers+1 {
			t.Errorf("killed after %d values: %d layers, then %d, of %d", n, first, second, layers)
		}
		if left := values(t, work); len(left) != 1 {
			t.Errorf("killed after %d values: %q are left", n, left)
		}
	}
}

// measured counts the layers whose types' errors are measured, not those that sensitivities take.
type measured struct{ *counter }

func (m measured) Stage(name string, _ int64) { m.quantizing = name == "errors of types" }
