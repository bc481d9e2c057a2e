package hub

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/hubtest"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/store"
)

// lazily opens a model of the hub whose larger tensors come by shards.
func lazily(t *testing.T, c *Client, folder string) (*Lazy, *hf.Checkpoint) {
	t.Helper()
	c.small, c.mostSmall = 1024, 65<<10
	z, err := c.Lazy(t.Context(), ref, folder)
	if err != nil {
		t.Fatal(err)
	}
	src, err := hf.Open(z.Dir(), hf.Options{Lazy: z.Open, Identity: z.Identity(), Passing: true, Check: z.Check})
	if err != nil {
		t.Fatal(err)
	}
	return z, src
}

// tinyFolder writes the test model under the name of its repository, which is its metadata's.
func tinyFolder(t *testing.T) (*testmodel.Model, string) {
	t.Helper()
	m := testmodel.New("llama3-tied")
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteFolder(dir); err != nil {
		t.Fatal(err)
	}
	return m, dir
}

type stopper struct {
	at   string
	stop func()
}

func (stopper) Stage(string, int64)  {}
func (stopper) Expect(time.Duration) {}
func (stopper) Skip(int64)           {}
func (s stopper) Item(name string) {
	if s.stop != nil && strings.HasPrefix(name, s.at) {
		s.stop()
	}
}
func (stopper) Detail(string) {}
func (stopper) Add(int64)     {}
func (stopper) Done()         {}

// quantized runs GPTQ, kept in work if that is not empty, and returns the file.
func quantized(t *testing.T, ctx context.Context, m *testmodel.Model, src pipeline.Source, out, work string, p pipeline.Progress) ([]byte, error) {
	t.Helper()
	const sequences, length = 8, 32
	set := &calib.Set{SeqLen: length}
	for i := range sequences {
		set.Sequences = append(set.Sequences, m.Tokens(length, uint64(i)))
	}
	plan, err := pipeline.NewPlan(src, pipeline.Recipe{Method: pipeline.GPTQ, Type: ggml.Q4_0, OutputHessian: pipeline.OutputHessianOff})
	if err != nil {
		t.Fatal(err)
	}
	opt := pipeline.Options{Calib: set, Progress: p, Overwrite: true}
	if work != "" {
		parts, err := pipeline.WorkParts(src, plan, pipeline.Budget{}, opt)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := store.OpenDir(work, parts)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		opt.Work = dir
	}
	if _, err := pipeline.Run(ctx, src, plan, out, opt); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b, nil
}

// embeddingsOf is where a file of weights has them.
func embeddingsOf(t *testing.T, path string) span {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := 8 + int64(binary.LittleEndian.Uint64(b))
	var header map[string]struct {
		Offsets [2]int64 `json:"data_offsets"`
	}
	if err := json.Unmarshal(b[8:first], &header); err != nil {
		t.Fatal(err)
	}
	at := header["model.embed_tokens.weight"].Offsets
	if at[1] == 0 {
		t.Fatalf("%s has no embeddings", path)
	}
	return span{first + at[0], first + at[1]}
}

// TestLazy quantizes a model of two shards whose weights come and go: the same file comes of it, no byte is fetched twice, and there is
// never more than a shard, what comes alone, and the layer that lies in both.
func TestLazy(t *testing.T) {
	m, dir := tinyFolder(t)
	local, err := hf.Open(dir, hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	out := filepath.Join(t.TempDir(), "out.gguf")
	want, err := quantized(t, t.Context(), m, local, out, "", stopper{})
	if err != nil {
		t.Fatal(err)
	}
	embeddings := spans{embeddingsOf(t, filepath.Join(dir, shard1))}
	errKilled := errors.New("killed")
	for _, killed := range []string{"", "layer 2", "the middle of a shard"} {
		t.Run("killed at "+killed, func(t *testing.T) {
			h := hubtest.OfFolder(t, dir)
			h.Environment(t)
			c, _, _ := client(t)
			folder, work := filepath.Join(t.TempDir(), "lazy"), ""
			var z *Lazy
			var peak int64
			c.Notify = func(s string) {
				if name, _, ok := strings.Cut(strings.TrimPrefix(s, "fetching "), ","); ok && z != nil { // before it is
					shard := z.shards[filepath.Join(z.dir, name)]
					peak = max(peak, z.taken()+shard.f.Bytes-shard.have.bytes())
					if left := embeddings.less(embeddings.less(z.shards[filepath.Join(z.dir, shard1)].have)); name == shard2 && len(left) > 0 {
						t.Errorf("bytes %v of the embeddings stay when the second shard comes", left)
					}
				}
				if strings.Contains(s, "fetched again") {
					t.Error(s)
				}
			}
			z, src := lazily(t, c, folder)
			if n := h.Sent(shard1) + h.Sent(shard2); n != z.taken() || n > 20_000 {
				t.Errorf("%d bytes are fetched to open the model, %d are there", n, z.taken())
			}
			if killed != "" {
				work = filepath.Join(t.TempDir(), "work")
				ctx, cancel := context.WithCancel(t.Context())
				c.sleep = func(context.Context, time.Duration) error { return errKilled }
				h.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
					if path == shard2 && !strings.HasPrefix(killed, "layer") && r.Host == strings.TrimPrefix(h.Storage.URL, "http://") {
						h.Send(w, r, path, 10_000)
					}
					return false
				})
				_, err := quantized(t, ctx, m, src, out, work, stopper{killed, cancel})
				if !errors.Is(err, context.Canceled) && !errors.Is(err, errKilled) {
					t.Fatalf("error %v", err)
				}
				h.On(nil)
				if err := errors.Join(src.Close(), z.Close()); err != nil {
					t.Fatal(err)
				}
				z, src = lazily(t, c, folder)
			}
			got, err := quantized(t, t.Context(), m, src, out, work, stopper{})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the file is another than that of the folder")
			}
			var largest, all, kept int64
			for _, s := range z.shards {
				largest, all, kept = max(largest, s.f.Bytes), all+s.f.Bytes, kept+s.alone.bytes()
				if n := h.Sent(s.f.Path); n != s.f.Bytes {
					t.Errorf("%s: %d bytes were sent of %d", s.f.Path, n, s.f.Bytes)
				}
			}
			layers, _ := src.Meta("llama.block_count")
			layer := all / int64(layers.(uint32))
			t.Logf("%d bytes at most of %d, the largest shard has %d, %d come alone, a layer has %d", peak, all, largest, kept, layer)
			if peak > largest+kept+layer || peak >= all {
				t.Errorf("%d bytes are there at a time", peak)
			}
			if err := errors.Join(src.Close(), z.Close(), z.Remove()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(folder); err == nil {
				t.Error("the folder is left")
			}
		})
	}
}

// TestLazyDigest: a shard whose content is not what is listed is noticed when it is complete, though all of its tensors are small.
func TestLazyDigest(t *testing.T) {
	for name, small := range map[string]int64{"large tensors": 1024, "small tensors": 1 << 30} {
		t.Run(name, func(t *testing.T) { damagedShard(t, small) })
	}
}

func damagedShard(t *testing.T, small int64) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	z, src := lazily(t, c, t.TempDir())
	if c.small = small; small > 1024 {
		c.mostSmall = small
	}
	b, err := os.ReadFile(filepath.Join(dir, shard2))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	for _, s := range z.shards { // as listed before
		if s.f.Path == shard2 {
			h.Change(hubtest.Commit, shard2, b)
		}
	}
	for _, info := range src.Tensors() {
		if _, err = src.Tensor(info.Name); err != nil {
			break
		}
	}
	if err == nil {
		err = z.Check()
	}
	if _, ok := errors.AsType[*DamagedError](err); !ok || !strings.Contains(err.Error(), shard2+": what has come has digest") {
		t.Errorf("error %v", err)
	}
	for _, info := range src.Tensors() { // whoever goes on nevertheless
		_, _ = src.Tensor(info.Name)
	}
	if _, ok := errors.AsType[*DamagedError](z.Check()); !ok {
		t.Error("it is forgotten that the download is damaged")
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Error(err)
	}
	if _, err := c.Lazy(t.Context(), ref, filepath.Dir(filepath.Dir(filepath.Dir(z.Dir())))); err == nil || !strings.Contains(err.Error(), "damaged download: remove") {
		t.Errorf("it is opened again: error %v", err)
	}
	if n := z.shards[filepath.Join(z.dir, shard2)].have.bytes(); n != 0 {
		t.Errorf("%d bytes of it are kept", n)
	}
}

// TestLazyHeld: two processes do not share a folder; and what the cache has is not fetched.
func TestLazyHeld(t *testing.T) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	folder := t.TempDir()
	z, src := lazily(t, c, folder)
	if _, err := c.Lazy(t.Context(), ref, folder); err == nil || !strings.Contains(err.Error(), "another process works in this folder") {
		t.Errorf("error %v", err)
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	fetched(t, c)
	h.Requests()
	z, src = lazily(t, c, t.TempDir())
	for _, info := range src.Tensors() {
		if _, err := src.Tensor(info.Name); err != nil {
			t.Error(err)
		}
	}
	if r := h.Requests(); len(r) != 1 {
		t.Errorf("what the cache has is asked for: %v", r)
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	// A blob that somebody has damaged is not written through.
	blob := filepath.Join(c.Cache, ref.folder(), "blobs", h.Digest(shard1))
	if err := os.WriteFile(blob, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	z, src = lazily(t, c, filepath.Dir(filepath.Dir(filepath.Dir(z.Dir()))))
	if b, err := os.ReadFile(blob); string(b) != "damaged" {
		t.Errorf("the cache's blob has %d bytes now, %v", len(b), err)
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestSpans compares with a byte each.
func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const size = 40
	var s spans
	var there [size]bool
	for range 2000 {
		lo := rng.Int64N(size)
		hi := lo + rng.Int64N(size-lo+1)
		add := rng.IntN(2) == 0
		if add {
			s = s.with(lo, hi)
		} else {
			s = s.without(lo, hi)
		}
		for i := lo; i < hi; i++ {
			there[i] = add
		}
		var want spans
		for i := range int64(size) {
			if there[i] && (i == 0 || !there[i-1]) {
				want = append(want, span{i, i})
			}
			if there[i] {
				want[len(want)-1].hi = i + 1
			}
		}
		if len(s) != len(want) {
			t.Fatalf("%v, want %v", s, want)
		}
		for i := range s {
			if s[i] != want[i] {
				t.Fatalf("%v, want %v", s, want)
			}
		}
	}
}

// TestLazyNorm: a norm, which every run reads at its beginning, does not bring the rest of the last shard, small as that is.
func TestLazyNorm(t *testing.T) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	z, err := c.Lazy(t.Context(), ref, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	src, err := hf.Open(z.Dir(), hf.Options{Lazy: z.Open, Identity: z.Identity(), Passing: true, Check: z.Check})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Tensor("output_norm.weight"); err != nil {
		t.Fatal(err)
	}
	for _, s := range z.shards {
		if n := h.Sent(s.f.Path); n > 10_000 || n > s.f.Bytes/4 {
			t.Errorf("%s: %d bytes are fetched for a norm, of %d", s.f.Path, n, s.f.Bytes)
		}
	}
}

// TestLazyUnchecked: what had come when a process was killed, and was not checked yet, is looked at by the next one, and fetched again by one
// after a power cut.
func TestLazyUnchecked(t *testing.T) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	folder := t.TempDir()
	// read reads the model, and has the journal of a shard be that of a process that was killed before it had checked all, on a system that has
	// started anew since or not, and perhaps the end of the file damaged.
	read := func(damage, anew bool) error {
		z, src := lazily(t, c, folder)
		var err error
		for _, info := range src.Tensors() {
			if _, e := src.Tensor(info.Name); e != nil && err == nil {
				err = e
			}
		}
		s := z.shards[filepath.Join(z.dir, shard1)]
		if err == nil && s.checked < s.f.Bytes {
			t.Error("the shard is not checked")
		}
		if err := errors.Join(src.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		b, e := os.ReadFile(s.path + ".have")
		var journal []string
		for line := range strings.Lines(string(b)) {
			if anew && strings.HasPrefix(line, "started ") {
				line = "started once\n"
			}
			if !strings.HasPrefix(line, "checked ") {
				journal = append(journal, line)
			}
		}
		var f *os.File
		if e == nil {
			e = os.WriteFile(s.path+".have", []byte(strings.Join(journal, "")), 0o644)
		}
		if e == nil && damage {
			f, e = os.OpenFile(s.path, os.O_RDWR, 0)
		}
		if f != nil {
			_, e = f.WriteAt([]byte("damaged"), s.f.Bytes-7)
			e = errors.Join(e, f.Close())
		}
		if e != nil {
			t.Fatal(e)
		}
		return err
	}
	if err := read(false, false); err != nil {
		t.Fatal(err)
	}
	size := h.Sent(shard1)
	if err := read(true, true); err != nil || h.Sent(shard1) > size {
		t.Fatalf("%d bytes are sent, then %d: %v", size, h.Sent(shard1), err)
	}
	if err := read(true, false); err != nil || h.Sent(shard1) <= size {
		t.Fatalf("after a power cut %d bytes are sent, no more: %v", h.Sent(shard1), err)
	}
	if err := read(false, false); err == nil || !strings.Contains(err.Error(), shard1+": what has come has digest") {
		t.Errorf("error %v", err)
	}
}

// TestLazyDamagedNorms: norms that were fetched before their shard could be checked, and are not what the hub has, are in no file, and nothing that
// was made of them is used again.
func TestLazyDamagedNorms(t *testing.T) {
	m, dir := tinyFolder(t)
	local, err := hf.Open(dir, hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	out := filepath.Join(t.TempDir(), "out.gguf")
	want, err := quantized(t, t.Context(), m, local, out, "", stopper{})
	if err != nil {
		t.Fatal(err)
	}
	hubtest.OfFolder(t, dir).Environment(t)
	c, _, _ := client(t)
	folder, work := t.TempDir(), t.TempDir()
	z, src := lazily(t, c, folder)
	for _, info := range src.Tensors() {
		if strings.HasSuffix(info.Name, "norm.weight") {
			if _, err := src.Tensor(info.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := z.shards[filepath.Join(z.dir, shard2)]
	if s == nil || s.checked > 0 {
		t.Fatal("the second shard has come")
	}
	if err := punch(s.file, s.first, s.f.Bytes); err != nil { // a power cut before they were on the disk
		t.Fatal(err)
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	run := func() ([]byte, error) {
		z, src := lazily(t, c, folder)
		got, err := quantized(t, t.Context(), m, src, out, work, stopper{})
		return got, errors.Join(err, src.Close(), z.Close())
	}
	_, err = run()
	if _, ok := errors.AsType[*DamagedError](err); !ok {
		t.Fatalf("damaged norms are not noticed: %v", err)
	}
	if _, err := c.Lazy(t.Context(), ref, folder); err == nil || !strings.Contains(err.Error(), "remove") {
		t.Fatalf("the damaged download is used again: %v", err)
	}
	if err := errors.Join(os.RemoveAll(folder), os.RemoveAll(work)); err != nil {
		t.Fatal(err)
	}
	got, err := run()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("another file, %v", err)
	}
}

// TestLazyRows: rows that are spent do not come again when others of their tensor are read.
func TestLazyRows(t *testing.T) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	z, src := lazily(t, c, t.TempDir())
	const name = "token_embd.weight"
	rows := 0
	for _, info := range src.Tensors() {
		if info.Name == name {
			rows = info.Rows()
		}
	}
	step := rows / 4
	first := int64(0)
	for lo := 0; lo < rows; lo += step {
		if _, err := src.Rows(name, lo, min(lo+step, rows)); err != nil {
			t.Fatal(err)
		}
		if sent := h.Sent(shard1) + h.Sent(shard2); lo == 0 {
			first = sent
		} else if sent != first {
			t.Errorf("rows from %d on: %d bytes were sent, %d before them", lo, sent, first)
		}
		if err := src.Spend([]model.Rows{{Name: name, Lo: lo, Hi: min(lo+step, rows)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Error(err)
	}
}

// TestLazyAgain: what had gone and comes again is not noted before it is on the disk, as after a power cut what was checked is believed.
func TestLazyAgain(t *testing.T) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	z, src := lazily(t, c, t.TempDir())
	const name = "token_embd.weight"
	read := func() error {
		in, err := src.Tensor(name)
		if err == nil {
			src.Release(in)
		}
		return err
	}
	spend := func() error {
		for _, info := range src.Tensors() {
			if info.Name == name {
				return src.Spend([]model.Rows{{Name: name, Hi: info.Rows()}})
			}
		}
		return errors.New("no tensor")
	}
	if err := errors.Join(read(), spend()); err != nil {
		t.Fatal(err)
	}
	s := z.shards[filepath.Join(z.dir, shard1)]
	journal := func() string {
		b, err := os.ReadFile(s.path + ".have")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := journal()
	if !strings.HasPrefix(before[strings.LastIndexByte(strings.TrimSuffix(before, "\n"), '\n')+1:], "gone ") {
		t.Fatalf("nothing has gone: %s", before)
	}
	errCut := errors.New("cut off")
	c.sleep = func(context.Context, time.Duration) error { return errCut }
	h.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
		if path == shard1 && r.Host == strings.TrimPrefix(h.Storage.URL, "http://") {
			h.Send(w, r, path, 10_000)
		}
		return false
	})
	if err := read(); !errors.Is(err, errCut) {
		t.Fatalf("error %v", err)
	}
	if now := journal(); now != before {
		t.Errorf("noted before it is on the disk: %s", now[len(before):])
	}
	h.On(nil)
	if err := read(); err != nil {
		t.Fatal(err)
	}
	if journal() == before {
		t.Error("what has come again is not noted")
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Error(err)
	}
}

// TestLazyAlone: a file of which nothing but small tensors was read, each by itself, is checked too.
func TestLazyAlone(t *testing.T) {
	_, dir := tinyFolder(t)
	h := hubtest.OfFolder(t, dir)
	h.Environment(t)
	c, _, _ := client(t)
	z, src := lazily(t, c, t.TempDir())
	b, err := os.ReadFile(filepath.Join(dir, shard2))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	h.Change(hubtest.Commit, shard2, b)
	if _, err := src.Tensor("output_norm.weight"); err != nil {
		t.Fatal(err)
	}
	if s := z.shards[filepath.Join(z.dir, shard2)]; s.checked > 0 {
		t.Fatal("the norm has not come alone")
	}
	if err := z.Check(); err == nil {
		t.Error("the shard is not checked")
	}
	if err := errors.Join(src.Close(), z.Close()); err != nil {
		t.Error(err)
	}
}
