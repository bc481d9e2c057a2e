package pipeline

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// Work is the folder of a run that goes on where it was cut off: see package store.
type Work interface {
	store.Store
	// Note writes down how far the run is.
	Note(s *store.Standing) error
	// Room refuses a disk that has less than so many bytes, those that are kept already, and what a partial output takes, included.
	Room(bytes int64) error
}

// note writes down that a phase has begun, or goes on.
func (k *keeper) note(phase string) error {
	if k == nil {
		return nil
	}
	k.done.Phase = phase
	return k.work.Note(&k.done)
}

// room refuses a disk without room for what the run keeps. Hessians of outputs that are yet to be made are there twice, if their
// temporary file is on the same disk.
func (k *keeper) room(t *task, found *findings) error {
	if k == nil || t.m == nil {
		return nil
	}
	bytes := t.workBytes(t.opt.Calib.Tokens(), t.opt.Calib.SeqLen)
	switch {
	case k.partial() != "":
		bytes += t.plan.Size()
	case t.plan.form == nil:
		bytes += t.plan.LayerBytes(t.m)
	}
	folder, ok := k.work.(interface{ Path() string })
	if t.plan.Recipe.wantsOutputs() && found.outputs == nil && ok && atomicfile.SameDisk(folder.Path(), t.tempDir) {
		bytes += t.plan.gradientNeeds(t.m, t.opt.Calib.Tokens(), t.opt.Calib.SeqLen, t.opt.Memory).disk
	}
	return k.work.Room(bytes)
}

// workBytes is the most that a work folder holds at a time beside an output that is made there: Hessians of the layers' outputs, and the
// hidden states before a layer, with those behind it that have not taken their place yet. Where the output is made elsewhere, the rows of all layers come to it.
func (t *task) workBytes(tokens, seqLen int) int64 {
	var bytes int64
	if t.plan.form != nil {
		bytes += t.plan.LayerBytes(t.m)
	}
	if t.plan.Recipe.wantsOutputs() {
		for i := range t.m.Layers() {
			for _, site := range t.m.Shape(i) {
				for _, out := range site.Out {
					for _, n := range outputBlocks(out, t.m.Dim, site.Expert >= 0 && !site.Head) {
						bytes += 4 * int64(n) * int64(n+1) / 2
					}
				}
			}
		}
	}
	all, more := t.statesBytes(tokens, seqLen)
	bytes += all + more
	if t.opt.Engine != nil {
		bytes += t.dividedBytes(t.streams())
	}
	return bytes
}

// statesBytes is the size of the hidden states that a work folder holds, and how much more there is of those before another layer while that is
// replaced: a piece, or all.
func (t *task) statesBytes(tokens, seqLen int) (all, more int64) {
	all = t.streams() * stateBytes(tokens, t.m.Width)
	if t.opt.Engine != nil || !t.advances() {
		return all, all
	}
	most := 0
	for _, p := range t.textPieces(textBatches(t.m, (tokens+seqLen-1)/seqLen, seqLen)) {
		most = max(most, p.hi-p.lo)
	}
	return all, min(all, t.streams()*stateBytes(most*seqLen, t.m.Width))
}

// LayerBytes is the size of all tensors that calibration reaches.
func (p *Plan) LayerBytes(m *model.Model) (bytes int64) {
	t := &task{plan: p, m: m}
	for i := range p.Tensors {
		if tensor := &p.Tensors[i]; t.calibrates(tensor) {
			bytes += tensor.Bytes()
		}
	}
	return bytes
}

// DividedBytes is the most that a work folder holds, besides Needs.Work, where the work is divided among machines.
func (p *Plan) DividedBytes(m *model.Model, set *calib.Set) int64 {
	t := &task{plan: p, m: m, opt: Options{Calib: set}}
	return t.dividedBytes(t.streams())
}

// streams is how many streams of hidden states there are.
func (t *task) streams() int64 {
	if t.plan.Recipe.original() && !t.opt.NoCorrection {
		return 2
	}
	return 1
}

// dividedBytes is the most that sums over shards take in a work folder, of a site's inputs, with the total, or of a layer's gradients, with
// the totals of the first half, before and after, and those of both halves where a machine has come or gone; and a layer's rows.
func (t *task) dividedBytes(streams int64) (most int64) {
	set := t.opt.Calib
	shards := int64(shardCount(textBatches(t.m, len(set.Sequences), set.SeqLen).batches()))
	copies := int64(1)
	if t.plan.Recipe.OutputHessian == OutputHessianAuto {
		copies = 2 // of the gradients that judge
	}
	for i := range t.m.Layers() {
		var gradients, largest int64
		for _, site := range t.m.Shape(i) {
			in := int64(site.In)
			inputs := 2 * in * (in + 1) // H's lower triangle
			if streams > 1 {
				inputs += 4 * in * in // Drift, or a Shortfall of fewer outputs
			}
			most = max(most, (shards+shardBundles+shardHalves+1)*inputs) // a machine may come or go between shards, bundles and halves
			for _, out := range site.Out {
				bytes := copies * outputBytes(out, t.m.Dim, site.Expert >= 0 && !site.Head) / 2
				gradients, largest = gradients+bytes, max(largest, bytes)
			}
		}
		if t.plan.Recipe.wantsOutputs() {
			most = max(most, int64(gradientsTogether+5)*min(gradients, max(outputBudget/2, largest)))
		}
	}
	return most + t.plan.largestUnit()
}

// largestUnit is the size of the largest layer's quantized tensors, or of the head, whose rows workers put out before the driver has them.
func (p *Plan) largestUnit() (most int64) {
	of := map[int]int64{}
	for i := range p.Tensors {
		if t := &p.Tensors[i]; t.Role == model.RoleLinear || t.Role == model.RoleHead {
			n := ggml.ParseName(t.Name).Layer
			of[n] += t.Bytes()
			most = max(most, of[n])
		}
	}
	return most
}

// WorkParts lists what a run's bytes depend on, by names for a user who is told that one of them has changed. The budget is
// that of Assign; p is the plan before it. Sources are known by their headers and a row of each tensor: who knows their
// files adds those, and the program's version.
func WorkParts(src Source, p *Plan, b Budget, opt Options) ([]store.Part, error) {
	digest, err := SourceDigest(src)
	if err != nil {
		return nil, err
	}
	return []store.Part{
		{What: "model", Digest: digest},
		{What: "recipe", Digest: store.Digest(func(w io.Writer) { digestRecipe(w, p, b, &opt) })},
		{What: "calibration text", Digest: store.Digest(func(w io.Writer) { digestText(w, &opt) })},
		TierPart(),
	}, nil
}

// TierPart is the processor's part in results: the order in which its kernels add.
func TierPart() store.Part {
	return store.Part{What: "processor or LLMQ_CPU", Digest: fmt.Sprint(kernels.CurrentTier())}
}

// SourceDigest is a digest of a source's headers and a row of each tensor.
func SourceDigest(src Source) (string, error) {
	var err error
	digest := store.Digest(func(w io.Writer) { err = digestSource(w, src) })
	return digest, err
}

// digestSource writes a source's metadata, its tensors' names, types and shapes, and the first row of each.
func digestSource(w io.Writer, src Source) error {
	digestMetadata(w, src.Metadata())
	identity := ""
	if i, ok := src.(interface{ Identity() string }); ok {
		identity = i.Identity()
	}
	fmt.Fprintf(w, "%q\n", identity)
	for _, info := range src.Tensors() {
		fmt.Fprintf(w, "%q %s %d\n", info.Name, info.Type.Name, info.Shape)
		if identity != "" || len(info.Shape) == 0 || info.Elements() == 0 {
			continue
		}
		rows, ok := src.(model.RowSource)
		if ok && len(info.Shape) > 1 {
			t, err := rows.Rows(info.Name, 0, 1)
			if err != nil {
				return err
			}
			w.Write(t.Data)
			src.Release(t)
			continue
		}
		t, err := src.Tensor(info.Name)
		if err != nil {
			return err
		}
		w.Write(t.Data[:info.Type.RowBytes(info.Cols())])
		src.Release(t)
	}
	return nil
}

func digestMetadata(w io.Writer, md gguf.Metadata) {
	for _, kv := range md {
		if list, ok := kv.Value.([]string); ok {
			fmt.Fprintf(w, "%q %q\n", kv.Key, list)
			continue
		}
		fmt.Fprintf(w, "%q %T %v\n", kv.Key, kv.Value, kv.Value)
	}
}

func digestRecipe(w io.Writer, p *Plan, b Budget, opt *Options) {
	r := p.Recipe.Resolved()
	fmt.Fprintf(w, "%T %+v %v %v %v %v\n", r.Method, r.Method, r.OutputHessian, r.BiasCorrection, r.NoFallback, r.PartBytes)
	if b != (Budget{}) { // Assign chooses types where the recipe has none
		fmt.Fprintf(w, "open %v %v\n", p.Recipe.Embedding == nil, p.Recipe.Output == nil)
	}
	if r.Container != nil {
		fmt.Fprintf(w, "container %s\n", r.Container.Name())
	}
	if r.Smooth != nil {
		fmt.Fprintf(w, "smooth %+v\n", *r.Smooth)
	}
	for _, rule := range r.Rules {
		fmt.Fprintf(w, "rule %q %s\n", rule.Pattern, rule.Type.Name)
	}
	for i := range p.Tensors {
		t := &p.Tensors[i]
		fmt.Fprintf(w, "%q %s %s %d\n", t.Name, t.Type.Name, t.Wanted.Name, t.Shape)
	}
	var text []string // of the calibration text, which is a part of its own
	if opt.Calib != nil {
		for _, kv := range opt.Calib.Metadata() {
			text = append(text, kv.Key)
		}
	}
	digestMetadata(w, slices.DeleteFunc(slices.Clone(p.Metadata), func(kv gguf.KV) bool {
		return slices.Contains(text, kv.Key) || strings.HasPrefix(kv.Key, "tokenizer.")
	}))
	fmt.Fprintf(w, "%+v %v %v %+v\n", b, opt.NoCorrection, opt.Validate.MaxIncrease, opt.Fallback)
}

func digestText(w io.Writer, opt *Options) {
	if set := opt.Calib; set != nil {
		digestMetadata(w, set.Metadata())
		fmt.Fprintln(w, len(set.Sequences), set.SeqLen, set.SHA256())
	}
	if opt.Imatrix != nil {
		digestImatrix(w, opt.Imatrix)
	}
	binary.Write(w, binary.LittleEndian, opt.Validate.Tokens)
}
