package imatrix_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/imatrix"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// text is a calibration set of some sequences.
func text(vocab int) *calib.Set {
	set := &calib.Set{SeqLen: 24}
	for i := range 5 {
		s := make([]int32, set.SeqLen)
		for j := range s {
			s[j] = int32((i*i*31 + j*j*7 + 3*j) % vocab)
		}
		set.Sequences = append(set.Sequences, s)
	}
	return set
}

func collect(t *testing.T, src *testmodel.Source, opt imatrix.Options) (*model.Model, *imatrix.Matrix) {
	t.Helper()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	got, err := imatrix.Collect(t.Context(), m, text(m.Vocab), opt)
	if err != nil {
		t.Fatal(err)
	}
	return m, got
}

// TestCollect sums the squares again, a sequence at a time.
func TestCollect(t *testing.T) {
	for name, src := range map[string]*testmodel.Source{"qwen2": testmodel.New("qwen2").Source(), "experts": testmodel.Experts()} {
		t.Run(name, func(t *testing.T) {
			m, got := collect(t, src, imatrix.Options{Head: true})
			want, counts := map[string][]float64{}, map[string]int64{}
			st := m.NewState()
			for _, seq := range text(m.Vocab).Sequences {
				x := tensor.New(len(seq), m.Width)
				if err := m.Embed(x, seq, len(seq), nil); err != nil {
					t.Fatal(err)
				}
				for i := range m.Layers() {
					l, err := m.LoadLayer(i)
					if err != nil {
						t.Fatal(err)
					}
					st.Enter(m, x, len(seq))
					err = l.Run(t.Context(), st, 0, len(l.Stages), func(s *model.Site, in *tensor.Matrix, _ []int) error {
						for _, lin := range s.Linears {
							if want[lin.ID()] == nil {
								want[lin.ID()] = make([]float64, lin.In)
							}
							for r := range in.Rows {
								for j, v := range in.Row(r) {
									want[lin.ID()][j] += float64(v) * float64(v)
								}
							}
							counts[lin.ID()] += int64(in.Rows)
						}
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					l.Release()
				}
			}
			seen := 0
			for i := range m.Layers() {
				for _, s := range m.Shape(i) {
					for _, tensorName := range s.Names {
						e := got.Find(tensorName)
						if e == nil {
							t.Fatalf("no sums of %s", tensorName)
						}
						if err := e.Fits(m.Tensor(tensorName)); err != nil {
							t.Fatal(err)
						}
						id, expert := tensorName, max(s.Expert, 0)
						if s.Expert >= 0 {
							id = (&model.Linear{Name: tensorName, Expert: s.Expert}).ID()
						}
						if e.Counts[expert] != counts[id] {
							t.Fatalf("%s: %d tokens, want %d", id, e.Counts[expert], counts[id])
						}
						for j, w := range want[id] {
							if d := math.Abs(float64(e.Sums[expert*e.In()+j]) - w); d > 1e-4*w+1e-12 {
								t.Fatalf("%s: feature %d: %v, want %v", id, j, e.Sums[expert*e.In()+j], w)
							}
						}
						seen++
					}
				}
			}
			if seen == 0 || got.Find("output.weight") == nil && !m.Tied {
				t.Fatalf("%d linears, head %v", seen, got.Find("output.weight"))
			}
			if got.Chunks != 5 || got.ChunkSize != 24 {
				t.Fatalf("%d chunks of %d", got.Chunks, got.ChunkSize)
			}
		})
	}
}

// TestFiles writes both forms and reads them.
func TestFiles(t *testing.T) {
	m := &imatrix.Matrix{Datasets: []string{"a text"}, Chunks: 3, ChunkSize: 8, Entries: []imatrix.Entry{
		{Name: "blk.0.attn_q.weight", Sums: []float32{24, 0, 2.5}, Counts: []int64{24}},
		{Name: "blk.0.ffn_up_exps.weight", Sums: []float32{1, 2, 3, 4, 0, 0}, Counts: []int64{4, 20, 0}},
	}}
	dir := t.TempDir()
	path := filepath.Join(dir, "m.gguf")
	if err := m.WriteGGUF(path, false); err != nil {
		t.Fatal(err)
	}
	got, err := imatrix.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("GGUF:\n%+v, want\n%+v", got, m)
	}
	path = filepath.Join(dir, "m.dat")
	if err := os.WriteFile(path, m.Legacy(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err = imatrix.Read(path); err != nil {
		t.Fatal(err)
	}
	// The older form has one number of calls for a tensor, and ones for what no token reached.
	want := &imatrix.Matrix{Datasets: m.Datasets, Chunks: 3, Entries: []imatrix.Entry{
		{Name: "blk.0.attn_q.weight", Sums: []float32{3, 0, 0.3125}, Counts: []int64{3}},
		{Name: "blk.0.ffn_up_exps.weight", Sums: []float32{0.75, 1.5, 0.45, 0.6, 3, 3}, Counts: []int64{3}},
	}}
	for i := range want.Entries {
		w, g := want.Entries[i], got.Entries[i]
		for j := range w.Sums {
			if math.Abs(float64(w.Sums[j]-g.Sums[j])) > 1e-6 {
				t.Errorf("%s: %v, want %v", w.Name, g.Sums, w.Sums)
				break
			}
		}
		if w.Name != g.Name || !reflect.DeepEqual(w.Counts, g.Counts) {
			t.Errorf("%+v, want %+v", g, w)
		}
	}
	if got.Chunks != 3 || !reflect.DeepEqual(got.Datasets, m.Datasets) {
		t.Errorf("%d chunks of %q", got.Chunks, got.Datasets)
	}
	// Experts have a tensor of three dimensions, in both forms.
	experts := &ggml.Info{Name: "blk.0.ffn_up_exps.weight", Type: ggml.F16, Shape: []int{3, 5, 2}}
	if e, err := got.Of(experts); err != nil || len(e.Counts) != 3 || !reflect.DeepEqual(e.Importance(0), []float32{0.25, 0.5}) {
		t.Errorf("of the older form: %+v, %v", e, err)
	}
	if e, err := m.Of(experts); err != nil || !reflect.DeepEqual(e.Importance(0), []float32{0.25, 0.5}) {
		t.Errorf("of GGUF: %+v, %v", e, err)
	}
	experts.Shape = []int{4, 5, 2}
	for _, m := range []*imatrix.Matrix{m, got} {
		if _, err := m.Of(experts); err == nil {
			t.Error("sums of another number of experts fit")
		}
	}
	if mean := m.Entries[1].Importance(2); !reflect.DeepEqual(mean, []float32{1, 1}) {
		t.Errorf("an expert that no token reached: %v", mean)
	}
	if mean := m.Entries[1].Importance(1); mean[0] != float32(3)/20 {
		t.Errorf("an expert's mean squares: %v", mean)
	}
}

// legacy is a file of the older form with one entry.
func legacy(entries, length int32, name string, calls, values int32, sums ...float32) []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, []int32{entries, length})
	b.WriteString(name)
	binary.Write(&b, binary.LittleEndian, []int32{calls, values})
	binary.Write(&b, binary.LittleEndian, sums)
	return b.Bytes()
}

func TestReadErrors(t *testing.T) {
	nan := float32(math.NaN())
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "the number of entries: needs 4 bytes, 0 are left"},
		{"entries", legacy(1<<30, 1, "a", 1, 1, 1), "the number of entries is 1073741824"},
		{"a name's length", legacy(1, 1<<20, "a", 1, 1, 1), "the length of entry 1's name is 1048576"},
		{"values", legacy(1, 1, "a", 1, 1<<28, 1), `"a"'s number of values is 268435456`},
		{"no values", legacy(1, 1, "a", 1, 0), `"a"'s number of values is 0`},
		{"calls", legacy(1, 1, "a", -1, 1, 1), `"a"'s number of calls is -1`},
		{"NaN", legacy(1, 1, "a", 1, 1, nan), `"a": sum 0 is NaN`},
		{"negative", legacy(1, 1, "a", 1, 1, -1), `"a": sum 0 is -1`},
		{"cut off", legacy(1, 1, "a", 1, 2, 1), "values: needs 8 bytes, 4 are left"},
		{"twice", append(legacy(2, 1, "a", 1, 1, 1), legacy(0, 1, "a", 1, 1, 1)[4:]...), `"a" appears twice`},
		{"what follows", append(legacy(1, 1, "a", 1, 1, 1), 1, 0, 0, 0, 0, 0, 0, 0, 9), "1 bytes follow its end"},
		{"GGUF", []byte("GGUF\x03\x00\x00\x00"), "gguf"},
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := imatrix.Read(path); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := imatrix.Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a folder: %v", err)
	}
	path := filepath.Join(t.TempDir(), "model.gguf")
	w, err := gguf.Create(path, gguf.Metadata{{Key: "general.architecture", Value: "llama"}},
		[]ggml.Info{{Name: "output_norm.weight", Type: ggml.F32, Shape: []int{1}}}, gguf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmp.Or(w.WriteTensor("output_norm.weight", make([]byte, 4)), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := imatrix.Read(path); err == nil || !strings.Contains(err.Error(), "none of an importance matrix") {
		t.Errorf("a model: %v", err)
	}
}

// FuzzRead reads anything: a matrix that is consistent, or an error.
func FuzzRead(f *testing.F) {
	m := &imatrix.Matrix{Datasets: []string{"text"}, Chunks: 1, ChunkSize: 4, Entries: []imatrix.Entry{
		{Name: "a", Sums: []float32{1, 2, 3, 4}, Counts: []int64{1, 2}}}}
	path := filepath.Join(f.TempDir(), "m.gguf")
	if err := m.WriteGGUF(path, false); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(m.Legacy())
	f.Add(legacy(1, 1, "a", 1, 1<<28, 1))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		m, err := imatrix.Read(path)
		if err != nil {
			return
		}
		for i := range m.Entries {
			e := &m.Entries[i]
			for x := range e.Counts {
				if len(e.Importance(x)) != e.In() {
					t.Fatalf("%q: %d features", e.Name, e.In())
				}
			}
			if m.Find(e.Name) != e {
				t.Fatalf("%q is not found", e.Name)
			}
		}
	})
}
