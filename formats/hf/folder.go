package hf

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/checkpoint"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/packed"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/model"
)

// A run sees a checkpoint as a GGUF file, and writes what it makes of a linear under GGUF's name and in its order of rows. A Folder
// brings the rows back to where they come from: into a checkpoint of the same names, in the format of a quantizer that servers
// read. All else is copied as it is.

// FolderFormat is a format of quantized checkpoints.
type FolderFormat int

const (
	// CompressedTensors is llm-compressor's: pack-quantized with 4 bits, int-quantized with 8 and dynamic activations.
	CompressedTensors FolderFormat = iota
	// GPTQ is AutoGPTQ's and GPTQModel's, checkpoint_format gptq: codes transposed, zero points stored minus one.
	GPTQ
)

var formatNames = []string{CompressedTensors: "compressed-tensors", GPTQ: "gptq"}

// FolderFormats are the names of the formats.
func FolderFormats() []string { return slices.Clone(formatNames) }

// ParseFolderFormat is the inverse of FolderFormat.String.
func ParseFolderFormat(name string) (FolderFormat, bool) {
	i := slices.Index(formatNames, name)
	return FolderFormat(max(i, 0)), i >= 0
}

func (f FolderFormat) String() string { return formatNames[f] }

// Folder says how a checkpoint is written in a format.
type Folder struct {
	c      *Checkpoint
	format FolderFormat
	scheme packed.Scheme
	bf16   bool // what float32 weights have been made of: an adapter is merged into bfloat16 ones
}

// Folder returns the checkpoint's in a format and scheme. It refuses a checkpoint that is quantized already.
func (c *Checkpoint) Folder(format FolderFormat, scheme packed.Scheme) (*Folder, error) {
	if format == GPTQ && scheme.ZeroPoint {
		scheme.MinZero = 1 // version 1 stores zero points minus one
	}
	if err := scheme.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	if format == GPTQ && scheme.Bits != 4 {
		return nil, fmt.Errorf("%s: weights of %d bits are for %s: 4 are possible", format, scheme.Bits, CompressedTensors)
	}
	for _, name := range c.weights.Names() {
		if info, _ := c.weights.Lookup(name); info.Format != "" && info.Format != checkpoint.LoRA {
			return nil, fmt.Errorf("hf: %s: tensor %q is stored as %s: take the original checkpoint for an output in %s", c.dir, name,
				info.Format, format)
		}
	}
	f := &Folder{c: c, format: format, scheme: scheme}
	if i, ok := c.index[model.EmbedName]; ok {
		f.bf16 = c.infos[i].Type == ggml.BF16
	}
	return f, nil
}

// Name is the format's.
func (f *Folder) Name() string { return f.format.String() }

// Type is what a linear becomes; nil where the scheme's groups do not divide its columns.
func (f *Folder) Type(info *ggml.Info) *ggml.Type {
	if t := f.scheme.TypeFor(info.Cols(), info.Type == ggml.BF16 || info.Type == ggml.F32 && f.bf16); t != nil {
		return t.Type
	}
	return nil
}

// FolderPlan is a folder before anything is written.
type FolderPlan struct {
	*Folder
	layout  *safetensors.Layout
	targets map[string]*target      // by the checkpoint's name
	routes  map[string][]routing    // by GGUF's name
	vectors map[string]*arch.Tensor // of vectors that change, by GGUF's name
	changed map[string]bool         // the checkpoint's tensors that these are made of
	kept    []string                // of the checkpoint's tensors
	config  []byte                  // config.json
	more    map[string][]byte       // files that the format has beside it
	copies  []string                // files that are copied
}

// target is a linear of the checkpoint that is quantized.
type target struct {
	stem    string // the name without ".weight"
	typ     *packed.Type
	out, in int
}

// routing brings the rows of a GGUF tensor from row first on to a target.
type routing struct {
	to    *target
	first int
	part  *arch.Part
}

// row is where row r of the part lies in the target.
func (r *routing) row(i int) int {
	if r.part.Row != nil {
		return r.part.Row(i)
	}
	return r.part.First + i
}

// Plan lays the folder out, of tensors that have GGUF's names and the types that they become. What has a type of package packed has
// to be whole linears of the checkpoint, but for the order of their rows, and all of each: anything else is refused by name. Of
// tensors that are not quantized, changed names those of which rows are taken too: vectors, in float32.
func (f *Folder) Plan(tensors []ggml.Info, changed []string) (*FolderPlan, error) {
	p := &FolderPlan{Folder: f, targets: map[string]*target{}, routes: map[string][]routing{}, vectors: map[string]*arch.Tensor{},
		changed: map[string]bool{}, more: map[string][]byte{}}
	if err := p.plan(tensors, changed); err != nil {
		return nil, fmt.Errorf("hf: %s: %s: %w", f.c.dir, f.format, err)
	}
	return p, nil
}

func (p *FolderPlan) plan(tensors []ggml.Info, changed []string) error {
	elsewhere := map[string]string{} // the checkpoint's tensors that those of GGUF that are not quantized are made of
	for i := range tensors {
		s, ok := p.c.index[tensors[i].Name]
		if !ok {
			return fmt.Errorf("tensor %q is not one of the checkpoint", tensors[i].Name)
		}
		t := p.c.sources[s].Tensor
		if typ := packed.Of(tensors[i].Type); typ != nil {
			if err := p.route(t, typ); err != nil {
				return err
			}
			continue
		}
		for k := range t.Parts {
			elsewhere[t.Parts[k].Name] = t.Name
		}
	}
	if len(p.targets) == 0 {
		return errors.New("there is no linear to quantize: none has columns that the scheme's groups divide")
	}
	if err := p.cover(elsewhere); err != nil {
		return err
	}
	if err := p.whole(); err != nil {
		return err
	}
	for _, name := range changed {
		if err := p.change(name); err != nil {
			return err
		}
	}
	var infos []safetensors.Info
	for _, name := range p.c.weights.Names() {
		info, _ := p.c.weights.Lookup(name)
		if t := p.targets[name]; t != nil {
			infos = append(infos, p.format.parts(t)...)
			continue
		}
		if slices.Contains(info.Shape, 0) {
			continue // no data
		}
		infos = append(infos, safetensors.Info{Name: name, DType: safetensors.DType(info.Type.Name), Shape: info.Shape})
		if !p.changed[name] {
			p.kept = append(p.kept, name)
		}
	}
	var err error
	if p.layout, err = safetensors.NewLayout(infos, safetensors.ShardBytes); err != nil {
		return err
	}
	if err := p.configure(); err != nil {
		return err
	}
	p.copies, err = companions(p.c.dir)
	return err
}

// route finds the way of a GGUF tensor's rows back.
func (p *FolderPlan) route(t *arch.Tensor, typ *packed.Type) error {
	refuse := func(why string) error {
		return fmt.Errorf("tensor %q of the model cannot be brought back to the checkpoint's form: %s", t.Name, why)
	}
	switch {
	case len(t.Parts) == 0:
		return refuse("the checkpoint has no such tensor")
	case t.Change != nil:
		return refuse(fmt.Sprintf("its values are not those of %q", t.Parts[0].Name))
	case t.Columns != nil:
		return refuse(fmt.Sprintf("its columns are in another order than those of %q", t.Parts[0].Name))
	}
	first := 0
	for i := range t.Parts {
		part := &t.Parts[i]
		info, _ := p.c.weights.Lookup(part.Name)
		stem, weight := strings.CutSuffix(part.Name, ".weight")
		switch {
		case part.Transposed:
			return refuse(fmt.Sprintf("%q is stored transposed", part.Name))
		case len(info.Shape) != 2 || !weight:
			return refuse(fmt.Sprintf("%q %d is not the weight of a linear layer", part.Name, info.Shape))
		case info.Shape[1] != t.Shape[len(t.Shape)-1]:
			return refuse(fmt.Sprintf("%q %d has rows of another length", part.Name, info.Shape))
		}
		to := p.targets[part.Name]
		if to == nil {
			to = &target{stem: stem, typ: typ, out: info.Shape[0], in: info.Shape[1]}
			p.targets[part.Name] = to
		}
		if to.typ != typ {
			return refuse(fmt.Sprintf("other rows of %q have another type", part.Name))
		}
		p.routes[t.Name] = append(p.routes[t.Name], routing{to, first, part})
		first += part.Count
	}
	return nil
}

// cover demands that each row of each target comes from one row of the model, and that nothing else is made of a target.
func (p *FolderPlan) cover(elsewhere map[string]string) error {
	seen := make(map[*target][]bool, len(p.targets))
	for _, name := range sortedNames(p.routes) {
		for _, r := range p.routes[name] {
			rows := seen[r.to]
			if rows == nil {
				rows = make([]bool, r.to.out)
				seen[r.to] = rows
			}
			for i := range r.part.Count {
				row := r.row(i)
				if row < 0 || row >= len(rows) || rows[row] {
					return fmt.Errorf("row %d of %q is not in one place of the model alone: the second is %q", row, r.part.Name, name)
				}
				rows[row] = true
			}
		}
	}
	for _, name := range sortedNames(p.targets) {
		t := p.targets[name]
		if row := slices.Index(seen[t], false); row >= 0 {
			return fmt.Errorf("row %d of %q is in no linear that is quantized%s", row, name,
				strings.TrimSuffix(", but in "+fmt.Sprintf("%q", elsewhere[name]), `, but in ""`))
		}
		if other, ok := elsewhere[name]; ok {
			return fmt.Errorf("%q is quantized, and %q is made of it too", name, other)
		}
		if p.format == GPTQ && t.out%codesPerWord != 0 {
			return fmt.Errorf("%q has %d outputs: zero points are stored %d to a word", name, t.out, codesPerWord)
		}
	}
	return nil
}

// oneExpert is the name of an expert's module or of its weight, up to what servers call all experts of its layer.
var oneExpert = regexp.MustCompile(`^(.*\.experts)\.\d+\.`)

// whole demands that a layer's experts are quantized all or not at all: servers have one method for them, and servedAs one name.
func (p *FolderPlan) whole() error {
	quantized := map[string]string{}
	for _, name := range sortedNames(p.targets) {
		if m := oneExpert.FindStringSubmatch(name); m != nil {
			quantized[m[1]] = name
		}
	}
	for _, name := range p.c.weights.Names() {
		m := oneExpert.FindStringSubmatch(name)
		if m == nil || !strings.HasSuffix(name, ".weight") || p.targets[name] != nil || quantized[m[1]] == "" {
			continue
		}
		if info, _ := p.c.weights.Lookup(name); len(info.Shape) == 2 {
			return fmt.Errorf("%q %d stays as it is, and %q is quantized, while servers take experts in one way: groups that divide all their columns (--group-size) are needed",
				name, info.Shape, quantized[m[1]])
		}
	}
	return nil
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Size is the size in bytes of what is written, but for the files that are copied.
func (p *FolderPlan) Size() int64 {
	size := p.layout.Size() + int64(len(p.config))
	for _, b := range p.more {
		size += int64(len(b))
	}
	return size
}

// Memory is what a FolderWriter keeps at most, in bytes: the rows of a linear that have come, and what it is stored as; one linear
// comes after the other.
func (p *FolderPlan) Memory() int64 {
	var most int64
	for _, t := range p.targets {
		most = max(most, int64(t.out)*int64(t.typ.RowBytes(t.in)))
	}
	return 2 * most
}

// FolderWriter writes a planned folder. Rows arrive in any order and from several goroutines.
type FolderWriter struct {
	*FolderPlan
	path   string
	folder *atomicfile.Folder
	shards *safetensors.ShardWriter

	mu   sync.Mutex
	open map[*target]*gathered // those of which some rows have come, and not all
	err  error                 // the first that failed
	left int                   // targets that are not written
}

// gathered are the rows of a target that have come: formats store columns together, or zero points of several rows.
type gathered struct {
	rows []byte
	seen []bool
	left int
}

// Quantized says why a folder is not a quantized checkpoint, of files alone, such as a Folder writes: nothing else may be replaced by one.
func Quantized(dir string) error {
	info, err := os.Lstat(filepath.Join(dir, configFile))
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxReplaced {
		return fmt.Errorf("holds other things, and no %s of a quantized checkpoint", configFile)
	}
	for _, sub := range []string{"", chatTemplatesDir} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && (sub == "" || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
		for _, e := range entries {
			if !e.Type().IsRegular() && !(sub == "" && e.IsDir() && e.Name() == chatTemplatesDir) {
				return fmt.Errorf("holds %s, which is no file", filepath.Join(sub, e.Name()))
			}
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return err
	}
	var c struct {
		Q map[string]json.RawMessage `json:"quantization_config"`
	}
	if err := json.Unmarshal(data, &c); err != nil || c.Q == nil {
		return fmt.Errorf("holds a %s without quantization_config", configFile)
	}
	return nil
}

// maxReplaced bounds config.json in bytes.
const maxReplaced = 64 << 20

// Create starts the folder: see atomicfile.CreateFolder for what it refuses. A folder that is replaced is Quantized.
func (p *FolderPlan) Create(path string, overwrite bool) (*FolderWriter, error) {
	folder, err := atomicfile.CreateFolder(path, p.Size(), Quantized, atomicfile.Options{Overwrite: overwrite})
	if err != nil {
		return nil, fmt.Errorf("hf: %w", err)
	}
	shards, err := p.layout.Create(folder.Dir())
	if err != nil {
		folder.Abort()
		return nil, err
	}
	return &FolderWriter{FolderPlan: p, path: path, folder: folder, shards: shards, open: map[*target]*gathered{}, left: len(p.targets)}, nil
}

// Paths is the folder.
func (w *FolderWriter) Paths() []string { return []string{w.path} }

// SetMeta does nothing: what GGUF files say in metadata config.json says, which stays as it is.
func (w *FolderWriter) SetMeta(string, any) error { return nil }

// WriteRows takes rows of a GGUF tensor, from row on, in the type that it was planned with. Of what neither is quantized nor
// changes they are ignored: the checkpoint has it.
func (w *FolderWriter) WriteRows(name string, row int, data []byte) error {
	if t := w.vectors[name]; t != nil {
		if err := w.vector(t, data); err != nil {
			return w.failed(fmt.Errorf("hf: %s: tensor %q: %w", w.path, name, err))
		}
	}
	for _, r := range w.routes[name] {
		size := r.to.typ.RowBytes(r.to.in)
		lo, hi := max(row, r.first), min(row+len(data)/size, r.first+r.part.Count)
		if lo >= hi {
			continue
		}
		if err := w.take(&r, lo-r.first, data[(lo-row)*size:(hi-row)*size]); err != nil {
			return w.failed(fmt.Errorf("hf: %s: tensor %q: %w", w.path, name, err))
		}
	}
	return nil
}

// take stores rows of a routing from its row first on, and writes the target if they are the last.
func (w *FolderWriter) take(r *routing, first int, data []byte) error {
	t := r.to
	size := t.typ.RowBytes(t.in)
	w.mu.Lock()
	g := w.open[t]
	if g == nil {
		g = &gathered{make([]byte, t.out*size), make([]bool, t.out), t.out}
		w.open[t] = g
	}
	n := len(data) / size
	for i := range n {
		row := r.row(first + i)
		if g.seen[row] {
			w.mu.Unlock()
			return fmt.Errorf("row %d of %q was written already", row, t.stem)
		}
		g.seen[row] = true
		copy(g.rows[row*size:], data[i*size:(i+1)*size])
	}
	g.left -= n
	done := g.left == 0
	if done {
		g.seen, w.left = nil, w.left-1
		delete(w.open, t)
	}
	w.mu.Unlock()
	if !done {
		return nil
	}
	for _, part := range w.format.encode(t, g.rows) {
		if err := w.shards.WriteAt(part.name, part.data, 0); err != nil {
			return err
		}
	}
	return nil
}

func (w *FolderWriter) failed(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = cmp.Or(w.err, err)
	return err
}

// Close copies what is kept, and puts the folder in its place. When it fails, nothing is left behind. All writes must have returned.
func (w *FolderWriter) Close() error {
	err := w.err
	if err == nil && w.left > 0 {
		err = fmt.Errorf("hf: %s: %d of %d linears were not written completely", w.path, w.left, len(w.targets))
	}
	for _, name := range w.kept {
		if err == nil {
			err = w.keep(name)
		}
	}
	if err == nil {
		err = w.finish()
	}
	if err != nil {
		w.Abort()
	}
	return err
}

// keep copies a tensor of the checkpoint.
func (w *FolderWriter) keep(name string) error {
	const step = 8 << 20
	info, _ := w.c.weights.Info(name)
	row := info.Type.RowBytes(info.Cols())
	for lo := 0; lo < info.Rows(); {
		hi := min(lo+max(1, step/row), info.Rows())
		data, err := w.c.weights.Rows(name, lo, hi)
		if err == nil {
			err = w.shards.WriteAt(name, data, int64(lo)*int64(row))
		}
		if err != nil {
			return err
		}
		w.c.weights.Release(name, lo, hi)
		lo = hi
	}
	return nil
}

func (w *FolderWriter) finish() error {
	dir := w.folder.Dir()
	if err := w.shards.Close(dir); err != nil {
		return err
	}
	if err := writeFile(dir, configFile, w.config); err != nil {
		return fmt.Errorf("hf: %s: %w", w.path, err)
	}
	for _, name := range sortedNames(w.more) {
		if err := writeFile(dir, name, w.more[name]); err != nil {
			return fmt.Errorf("hf: %s: %w", w.path, err)
		}
	}
	for _, name := range w.copies {
		if err := copyFile(dir, w.c.dir, name); err != nil {
			return fmt.Errorf("hf: %s: %w", w.path, err)
		}
	}
	if err := w.folder.Commit(); err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	return nil
}

// Abort gives the folder up and leaves nothing behind. After Close it does nothing, so it can be deferred.
func (w *FolderWriter) Abort() {
	w.shards.Abort()
	w.folder.Abort()
}
