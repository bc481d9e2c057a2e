package gguf

import (
	"fmt"
	"reflect"
	"slices"
	"sort"
	"sync"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/atomicfile"
)

// Options are Create's. The zero value refuses to replace a file, and writes one.
type Options struct {
	// Overwrite allows existing regular files to be replaced, at the very end.
	Overwrite bool
	// PartBytes splits a model with more bytes of tensors into several files: see NewPlan and Plan.Paths. 0: it does
	// not.
	PartBytes int64
	// Partial, if it is not empty, is the file in which the model is made, or what the names of the parts' files begin with: Abort leaves
	// it, and the next Writer goes on with what is there. Nobody else may write there.
	Partial string
}

// Writer fills in a planned file, or the parts of a split one. Tensors arrive in any order and from several goroutines;
// the bytes do not depend on it. All files appear under their names when Close has found them complete and on the disk,
// and none before.
type Writer struct {
	path  string
	paths []string
	plan  *Plan
	out   []*atomicfile.File // of each part

	mu      sync.Mutex
	err     error    // the first write that failed
	written [][]span // per tensor, the rows that are taken: sorted, apart from each other
}

// span is the rows lo ≤ row < hi.
type span struct{ lo, hi int }

// Create plans the file and makes room for it; see NewPlan for what it refuses. A disk without the room for all of it,
// a path that is no regular file, or one that exists (unless Overwrite is set) is an error.
func Create(path string, md Metadata, tensors []ggml.Info, opt Options) (*Writer, error) {
	plan, err := NewPlan(md, tensors, opt.PartBytes)
	if err != nil {
		return nil, err
	}
	w := &Writer{path: path, paths: plan.Paths(path), plan: plan, written: make([][]span, len(tensors))}
	for i, part := range plan.parts {
		out, err := begin(w.paths[i], i, part.size, &opt)
		if err == nil {
			w.out = append(w.out, out)
			_, err = out.WriteAt(part.header, 0)
		}
		if err == nil && opt.Partial != "" {
			err = w.clearPadding(i)
		}
		if err != nil {
			w.Abort()
			return nil, fmt.Errorf("gguf: %w", err)
		}
	}
	return w, nil
}

// begin starts the file of part i.
func begin(path string, i int, size int64, opt *Options) (*atomicfile.File, error) {
	o := atomicfile.Options{Overwrite: opt.Overwrite}
	if opt.Partial == "" {
		return atomicfile.Create(path, size, o)
	}
	partial := opt.Partial
	if i > 0 {
		partial += fmt.Sprintf("-%05d", i+1)
	}
	return atomicfile.Resume(path, partial, size, o)
}

// clearPadding makes what is between a part's tensors zeros again: of what an earlier process has left, nobody knows.
func (w *Writer) clearPadding(part int) error {
	at := int64(len(w.plan.parts[part].header))
	clearTo := func(end int64) error {
		_, err := w.out[part].WriteAt(make([]byte, end-at), at)
		return err
	}
	for _, s := range w.plan.slots { // in order
		if s.part != part {
			continue
		}
		if err := clearTo(s.offset); err != nil {
			return err
		}
		at = s.offset + s.size
	}
	return clearTo(w.plan.parts[part].size)
}

// Paths are the names of the files: one, but for a split model.
func (w *Writer) Paths() []string { return w.paths }

// WriteTensor stores all of a tensor.
func (w *Writer) WriteTensor(name string, data []byte) error {
	if i, ok := w.plan.index[name]; ok && int64(len(data)) != w.plan.slots[i].size {
		return w.errorf(name, "%s needs %d bytes, got %d", describe(&w.plan.infos[i]), w.plan.slots[i].size, len(data))
	}
	return w.WriteRows(name, 0, data)
}

// WriteRows stores whole rows of a tensor, from row on, so that a large one can be written in pieces. Every row is
// written once.
func (w *Writer) WriteRows(name string, row int, data []byte) error {
	i, n, err := w.place(name, row, data)
	if err != nil || n == 0 {
		return err
	}
	if err := w.take(i, span{row, row + n}); err != nil {
		return err
	}
	at := w.plan.slots[i]
	if _, err := w.out[at.part].WriteAt(data, at.offset+int64(row)*int64(len(data)/n)); err != nil {
		return w.failed(err)
	}
	return nil
}

// place finds where data, whole rows of a tensor from row on, goes: which tensor, and how many rows.
func (w *Writer) place(name string, row int, data []byte) (i, n int, err error) {
	i, ok := w.plan.index[name]
	if !ok {
		return 0, 0, w.errorf(name, "not in the plan")
	}
	t := &w.plan.infos[i]
	rowBytes := t.Type.RowBytes(t.Cols())
	n = len(data) / rowBytes
	if len(data)%rowBytes != 0 {
		return 0, 0, w.errorf(name, "%d bytes are not whole rows of %d", len(data), rowBytes)
	}
	if row < 0 || n > t.Rows()-row {
		return 0, 0, w.errorf(name, "rows %d to %d of %d", row, row+n, t.Rows())
	}
	return i, n, nil
}

// ReadRows reads what is in a partial file in the place of a tensor's rows, from row on.
func (w *Writer) ReadRows(name string, row int, data []byte) error {
	i, n, err := w.place(name, row, data)
	if err != nil || n == 0 {
		return err
	}
	at := w.plan.slots[i]
	if _, err := w.out[at.part].ReadAt(data, at.offset+int64(row)*int64(len(data)/n)); err != nil {
		return fmt.Errorf("gguf: %s: %w", w.path, err)
	}
	return nil
}

// HaveRows says that a partial file has so many of a tensor's rows, from row on, as WriteRows would write them.
func (w *Writer) HaveRows(name string, row, n int) error {
	i, ok := w.plan.index[name]
	if !ok {
		return w.errorf(name, "not in the plan")
	}
	if t := &w.plan.infos[i]; row < 0 || n < 0 || n > t.Rows()-row {
		return w.errorf(name, "rows %d to %d of %d", row, row+n, t.Rows())
	}
	if n == 0 {
		return nil
	}
	return w.take(i, span{row, row + n})
}

// Sync has what was written to a partial file on the disk.
func (w *Writer) Sync() error {
	for _, out := range w.out {
		if err := out.Sync(); err != nil {
			return w.failed(err)
		}
	}
	return nil
}

// take notes that s of tensor i is being written.
func (w *Writer) take(i int, s span) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	list := w.written[i]
	at := sort.Search(len(list), func(j int) bool { return list[j].hi > s.lo })
	if at < len(list) && list[at].lo < s.hi {
		return w.errorf(w.plan.infos[i].Name, "rows %d to %d were written already", max(s.lo, list[at].lo),
			min(s.hi, list[at].hi))
	}
	// Join s with the neighbours that it touches.
	lo, hi := at, at
	if at > 0 && list[at-1].hi == s.lo {
		lo, s.lo = at-1, list[at-1].lo
	}
	if at < len(list) && list[at].lo == s.hi {
		hi, s.hi = at+1, list[at].hi
	}
	w.written[i] = slices.Replace(list, lo, hi, s)
	return nil
}

// SetMeta replaces the value of a metadata entry of the plan, for what is known only after the tensors: the new one must
// be of the same Go type and take as many bytes, as an array of numbers of the same length does.
func (w *Writer) SetMeta(key string, value any) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("gguf: %s: metadata %q: %s", w.path, key, fmt.Sprintf(format, args...))
	}
	md := w.plan.md
	i := slices.IndexFunc(md, func(kv KV) bool { return kv.Key == key })
	switch {
	case i < 0:
		return fail("not in the plan")
	case key == alignmentKey, len(w.out) > 1 && (key == splitNoKey || key == splitCountKey || key == splitTensorsKey):
		return fail("the layout depends on it")
	case reflect.TypeOf(value) != reflect.TypeOf(md[i].Value):
		return fail("planned as %T, not %T", md[i].Value, value)
	}
	old, err := appendValue(nil, md[i].Value)
	if err != nil {
		return fail("%v", err)
	}
	b, err := appendValue(nil, value)
	if err != nil {
		return fail("%v", err)
	}
	if len(b) != len(old) {
		return fail("planned with %d bytes, not %d", len(old), len(b))
	}
	before, err := encodeHeader(md[:i], nil, nil)
	if err != nil {
		return fail("%v", err)
	}
	if _, err := w.out[0].WriteAt(b, int64(len(appendString(before, key)))); err != nil {
		return w.failed(err)
	}
	return nil
}

// failed remembers the first write that failed, so that Close does not succeed.
func (w *Writer) failed(err error) error {
	err = fmt.Errorf("gguf: %w", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}

// Open checks that every tensor is complete and opens what was written, before Close puts it in its place. All writes
// must have returned. The file must be closed before the writer is.
func (w *Writer) Open() (*File, error) {
	if err := w.complete(); err != nil {
		return nil, err
	}
	var paths []string
	for _, out := range w.out {
		paths = append(paths, out.Temp())
	}
	return openAll(paths)
}

// Close checks that every tensor is complete and puts the file, or all parts, in place. When it fails, nothing is left
// behind, but for a partial file. All writes must have returned.
func (w *Writer) Close() error {
	if err := w.complete(); err != nil {
		w.Abort()
		return err
	}
	if err := atomicfile.Commit(w.out...); err != nil {
		return fmt.Errorf("gguf: %w", err)
	}
	return nil
}

func (w *Writer) complete() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	missing, first := 0, ""
	for i := range w.plan.infos {
		t := &w.plan.infos[i]
		if list := w.written[i]; len(list) == 1 && list[0] == (span{0, t.Rows()}) {
			continue
		}
		if missing++; missing == 1 {
			first = t.Name
		}
	}
	if missing > 0 {
		return fmt.Errorf("gguf: %s: %d of %d tensors were not written completely, the first is %q",
			w.path, missing, len(w.plan.infos), first)
	}
	return nil
}

// Abort gives the file up and leaves nothing behind, but for a partial file. After Close it does nothing, so it can be deferred.
func (w *Writer) Abort() {
	for _, out := range w.out {
		out.Abort()
	}
}

func (w *Writer) errorf(tensor, format string, args ...any) error {
	return fmt.Errorf("gguf: %s: tensor %q: %s", w.path, tensor, fmt.Sprintf(format, args...))
}
