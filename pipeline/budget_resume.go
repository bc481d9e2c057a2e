package pipeline

import (
	"fmt"
	"time"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/store"
)

// typesPrefix is that of what Assign keeps until it has measured everything, which typesName has.
const (
	typesPrefix = "types-"
	typesName   = "types"
)

// keptUse is what was measured of a use.
type keptUse struct {
	Site       string
	Importance []float32
	ProbeType  string
	Probe      float64
	Errors     []float64
	KL         float64
}

// keptUses are some uses, and what it took to measure them.
type keptUses struct {
	Uses    []keptUse
	Tokens  int // of the sensitivities
	Seconds float64
}

// usesKept lists the uses whose errors are known, but for those that noted has, and adds them to it.
func (a *assigner) usesKept(noted map[string]bool) (list []keptUse) {
	for _, u := range a.order {
		if u.errors == nil || noted[u.site] {
			continue
		}
		noted[u.site] = true
		list = append(list, keptUse{u.site, u.importance, u.probeType.Name, u.probe, u.errors, u.kl})
	}
	return list
}

func (a *assigner) recallUses(list []keptUse) error {
	for _, k := range list {
		u := a.uses[k.Site]
		if u == nil {
			return fmt.Errorf("the work folder: %s is not to be given a type", k.Site)
		}
		t, err := ggml.ByName(k.ProbeType)
		if err != nil {
			return err
		}
		u.importance, u.probeType, u.probe, u.errors, u.kl = k.Importance, t, k.Probe, k.Errors, k.KL
		if a.kept != nil {
			a.kept.noted[k.Site] = true
		}
	}
	return nil
}

// measurements measures errors and effects, or takes them from the work folder, and returns on how many tokens the effects
// were measured.
func (a *assigner) measurements() (tokens int, err error) {
	if a.kept != nil {
		var k keptUses
		ok, err := recallValue(a.opt.Work, typesName, &k)
		if err != nil {
			return 0, err
		}
		if ok {
			return k.Tokens, a.recallUses(k.Uses)
		}
	}
	if err := a.measure(); err != nil {
		return 0, err
	}
	if tokens, err = a.sensitivity(); err != nil || a.kept == nil {
		return tokens, err
	}
	k := keptUses{Uses: a.usesKept(map[string]bool{}), Tokens: tokens}
	if err := keepValue(a.opt.Work, typesName, &k); err != nil {
		return 0, err
	}
	return tokens, a.kept.forget("")
}

// recall takes the errors of the layers that are in the work folder, with the hidden states behind them, and returns the
// layer that is next.
func (a *assigner) recall(s *stream) (next int, err error) {
	k := a.kept
	if k == nil {
		return 0, nil
	}
	k.done.Layers = a.m.Layers()
	var layers []keptUses
	for range a.m.Layers() {
		var l keptUses
		ok, err := recallValue(k.work, k.layerName(len(layers)), &l)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		layers = append(layers, l)
	}
	for next = len(layers); next > 0; next-- {
		ok, err := k.recallStates(shardPieces(s.batches, 1), s, nil, next)
		if err != nil {
			return 0, err
		}
		if ok {
			break
		}
	}
	for _, l := range layers[:next] {
		if err := a.recallUses(l.Uses); err != nil {
			return 0, err
		}
		k.done.LayerSeconds = append(k.done.LayerSeconds, l.Seconds)
	}
	return next, k.note(store.PhaseTypes)
}

// keep has layer i measured, and keeps what comes of it.
func (a *assigner) keep(s *stream, i int, do func() error) error {
	k := a.kept
	if k == nil {
		return do()
	}
	start := time.Now()
	if err := do(); err != nil {
		return err
	}
	l := keptUses{Seconds: time.Since(start).Seconds()}
	l.Uses = a.usesKept(k.noted)
	if err := keepValue(k.work, k.layerName(i), &l); err != nil {
		return err
	}
	if err := k.replaceStates(shardPieces(s.batches, 1), s, nil, i+1, false); err != nil {
		return err
	}
	k.done.LayerSeconds = append(k.done.LayerSeconds, l.Seconds)
	return k.note(store.PhaseTypes)
}
