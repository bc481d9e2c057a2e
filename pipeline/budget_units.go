package pipeline

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// With Options.Engine the effects of Assign's probes are units of work: a few uses each, whose effects do not depend on each other.
// Each unit takes the text through the original model too, to compare with. In the work folder are
//
//	types-probes     the text and the probes of all uses, for the workers: keptProbes
//	types-effectsU   the effects of the uses from U on, as pairs of float64: eval.Effect
const probesName = typesPrefix + "probes"

// usesTogether is how many uses are a unit: enough to make the original's pass a small part of it, which is as much work as two of
// the others are in the mean. Tests make it smaller.
var usesTogether = 14

// keptProbes are what effects are measured of.
type keptProbes struct {
	Text []int32
	Uses []keptUse // without errors
}

// effectsJob is what a worker must know of the effects that are measured besides the checkpoint.
type effectsJob struct {
	Source string // SourceDigest
	Length int    // of the text's parts
}

// effectsUnit is uses [First,Last).
type effectsUnit struct{ First, Last int }

func (u effectsUnit) name() string { return fmt.Sprintf("%seffects%05d", typesPrefix, u.First) }

// effectsByUnits is effectsOf of all uses, with its work handed out by an engine.
func (a *assigner) effectsByUnits(text []int32, length int) ([]eval.Effect, error) {
	if a.kept == nil {
		return nil, fmt.Errorf("many machines share the measuring of a budget in a work folder: give one")
	}
	digest, err := SourceDigest(a.src)
	if err != nil {
		return nil, err
	}
	probes := keptProbes{Text: text}
	for _, u := range a.order {
		probes.Uses = append(probes.Uses, keptUse{Site: u.site, Importance: u.importance, ProbeType: u.probeType.Name})
	}
	if err := keepValue(a.opt.Work, probesName, &probes); err != nil {
		return nil, err
	}
	job, err := engine.OfKind(jobEffects, &effectsJob{digest, length})
	if err != nil {
		return nil, err
	}
	if err := a.opt.Engine.Begin(a.ctx, job); err != nil {
		return nil, err
	}
	var list []effectsUnit
	var units []engine.Unit
	var total int64
	for first := 0; first < len(a.order); first += usesTogether {
		u := effectsUnit{first, min(first+usesTogether, len(a.order))}
		spec, err := json.Marshal(&u)
		if err != nil {
			return nil, err
		}
		list = append(list, u)
		units = append(units, engine.Unit{Name: u.name(), Spec: spec, Size: a.layersAfter(u)})
		total += a.layersAfter(u)
	}
	a.opt.Progress.Stage("sensitivity", total)
	defer a.opt.Progress.Done()
	ready := 0
	err = engine.DoWatched(a.ctx, a.opt.Engine, a.opt.Work, units, func(done []engine.Unit) error {
		for _, u := range done {
			a.opt.Progress.Add(u.Size)
		}
		ready += len(done)
		a.opt.Progress.Item(fmt.Sprintf("%d/%d units", ready, len(units)))
		return nil
	})
	if err != nil {
		return nil, err
	}
	var effects []eval.Effect
	for _, u := range list {
		some := make([]eval.Effect, u.Last-u.First)
		r, err := a.opt.Work.Open(u.name())
		if err != nil {
			return nil, err
		}
		err = binary.Read(r, binary.LittleEndian, some)
		r.Close()
		if err != nil {
			return nil, fmt.Errorf("the work folder: %s: %w", u.name(), err)
		}
		effects = append(effects, some...)
	}
	return effects, nil
}

// layersAfter is how many layers a unit's variants go through, those of the original with them.
func (a *assigner) layersAfter(u effectsUnit) int64 {
	n := a.m.Layers()
	for _, use := range a.order[u.First:u.Last] {
		switch layer := a.m.LayerOf(use.site); {
		case layer >= 0:
			n += a.m.Layers() - layer
		case use.site == eval.Embedding:
			n += a.m.Layers()
		}
	}
	return int64(n)
}

// effectsWorker does the units of effectsByUnits.
type effectsWorker struct {
	m      *model.Model
	job    effectsJob
	text   []int32
	uses   []*use
	values store.Shared
	opt    WorkerOptions
}

func newEffectsWorker(src Source, job []byte, values store.Shared, opt WorkerOptions) (*effectsWorker, error) {
	w := &effectsWorker{values: values, opt: opt}
	if err := json.Unmarshal(job, &w.job); err != nil {
		return nil, fmt.Errorf("the job: %w", err)
	}
	if err := isAbout(src, w.job.Source); err != nil {
		return nil, err
	}
	var err error
	if w.m, err = arch.Open(src); err != nil {
		return nil, err
	}
	var probes keptProbes
	switch ok, err := recallValue(values, probesName, &probes); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("the work folder: has no %s", probesName)
	}
	w.text = probes.Text
	for _, k := range probes.Uses {
		t, err := ggml.ByName(k.ProbeType)
		if err != nil {
			return nil, fmt.Errorf("the work folder: %s: %w", probesName, err)
		}
		w.uses = append(w.uses, &use{site: k.Site, importance: k.Importance, probeType: t})
	}
	return w, nil
}

// Close implements engine.Worker.
func (w *effectsWorker) Close() error { return nil }

// Do implements engine.Worker.
func (w *effectsWorker) Do(ctx context.Context, unit engine.Unit) (digest string, err error) {
	var u effectsUnit
	if err := json.Unmarshal(unit.Spec, &u); err != nil {
		return "", fmt.Errorf("the unit: %w", err)
	}
	if u.First < 0 || u.First >= u.Last || u.Last > len(w.uses) || u.name() != unit.Name {
		return "", fmt.Errorf("the unit %q is of tensors %d to %d of %d", unit.Name, u.First, u.Last, len(w.uses))
	}
	err = mmap.Guard(func() error {
		effects, err := effectsOf(ctx, w.m, w.text, w.job.Length, w.uses[u.First:u.Last], w.opt.Memory, w.opt.TempDir, silent{})
		if err == nil {
			digest, err = w.values.Put(unit.Name, true, func(dst io.Writer) error { return binary.Write(dst, binary.LittleEndian, effects) })
		}
		return err
	})
	return digest, err
}
