package pipeline

import (
	"encoding/json"
	"fmt"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
)

// With Options.Engine the layers are taken in units of work, whose values lie in the work folder beside those of a run that
// does everything itself, and are removed as soon as nothing needs them. Of stage K of layer I they are
//
//	runN-layerI-stageK-shardS    observe  statistics of the site's inputs, or of all experts' together, over a shard of the text:
//	                                      their last part, after those whose names end in -partP
//	runN-layerI-stageK-bundleB   observe  the same over all shards of a bundle
//	runN-layerI-stageK-halfH     observe  the same over all shards of a half: there are no sums, who needs them adds both halves
//	runN-layerI-stageK-sumsP     sum      a part of the sum of the shards' statistics, or of the bundles': see Shards
//	runN-layerI-stageK-linearJ-rowsR  rows  the bytes of some of a linear's rows, and what there is to report of them
//	runN-layerI-stageK-linear0-batchB-partPofN  batch  targets and bytes of some rows of a batch: see batched
//	runN-layerI-stageK-statesS   stand    a shard's hidden states before a stage of experts, of both models
//	runN-layerI-stageK-expertsE  experts  the bytes of some experts' rows
//	runN-statesI-shardS          advance  a shard's hidden states behind layer I-1
//	runN-states0-tokens                   the calibration text's tokens, of which a worker embeds those of its shards
//
// and layer I is the head where there are no more layers. A worker brings hidden states to a stage by itself, from those before
// the layer, or from where it has them, with the rows that the stages before have put out.
const (
	unitObserve = "observe"
	unitSum     = "sum"
	unitOfRows  = "rows"
	unitBatch   = "batch"
	unitStand   = "stand"
	unitExperts = "experts"
	unitAdvance = "advance"
)

// expertsTogether is the most experts of a unit: few, so that there are enough units for many machines.
const expertsTogether = 8

// unitSpec is a unit's engine.Unit.Spec.
type unitSpec struct {
	Kind        string
	Layer       int
	Stage       int
	Shard       int `json:",omitempty"`
	Site        int `json:",omitempty"` // of experts: sites [Site,End)
	End         int `json:",omitempty"`
	Linear      int `json:",omitempty"` // of rows: rows [First,Last)
	First, Last int `json:",omitempty"`
	Part        int `json:",omitempty"` // of sums: see statsParts; or of a batch
	// Batch, of a linear that is quantized batch by batch, has Parts; those of rows are what its batches had.
	Batch int `json:",omitempty"`
	Parts int `json:",omitempty"`
	// Pool: what is observed, or summed, is the inputs of all experts together.
	Pool bool `json:",omitempty"`
	// Bundle: what is observed is all shards of bundle Shard; what is summed is bundles.
	Bundle bool `json:",omitempty"`
	// Half: what is observed is all shards of half Shard; the statistics that rows, batches or experts need are two halves.
	Half bool `json:",omitempty"`
	// Stand is the stage before which hidden states of all shards are kept; 0: those before the layer are to be taken.
	Stand int `json:",omitempty"`
}

// name is that of the unit's value.
func (u *unitSpec) name(k *keeper) string {
	stage := fmt.Sprintf("%s-stage%02d", k.layerName(u.Layer), u.Stage)
	switch u.Kind {
	case unitObserve:
		if u.Half {
			return fmt.Sprintf("%s-half%d", stage, u.Shard)
		}
		if u.Bundle {
			return fmt.Sprintf("%s-bundle%02d", stage, u.Shard)
		}
		return fmt.Sprintf("%s-shard%02d", stage, u.Shard)
	case unitSum:
		return fmt.Sprintf("%s-sums%02d", stage, u.Part)
	case unitOfRows:
		return fmt.Sprintf("%s-linear%02d-rows%07d", stage, u.Linear, u.First)
	case unitBatch:
		return fmt.Sprintf("%s%04d-part%dof%d", u.batchPrefix(k), u.Batch, u.Part, u.Parts)
	case unitStand:
		return fmt.Sprintf("%s-states%02d", stage, u.Shard)
	case unitExperts:
		return fmt.Sprintf("%s-experts%04d", stage, u.Site)
	default:
		return k.shardName(u.Layer+1, u.Shard)
	}
}

// batchPrefix is what the names of all batches of u's linear begin with.
func (u *unitSpec) batchPrefix(k *keeper) string {
	return fmt.Sprintf("%s-stage%02d-linear%02d-batch", k.layerName(u.Layer), u.Stage, u.Linear)
}

// observed are the names of the parts of an observe unit's value, of which there are so many: its own name is the last.
func (u *unitSpec) observed(k *keeper, parts int) (names []string) {
	for part := range parts - 1 {
		names = append(names, fmt.Sprintf("%s-part%02d", u.name(k), part))
	}
	return append(names, u.name(k))
}

// count is how many observe units there are, of so many batches.
func (u *unitSpec) count(batches int) int {
	n := shardCount(batches)
	switch {
	case u.Half:
		return halfCount(n)
	case u.Bundle:
		return bundleCount(n)
	}
	return n
}

// shards are the shards [lo,hi) of an observe unit.
func (u *unitSpec) shards(batches int) (lo, hi int) {
	switch {
	case u.Half:
		return halfShards(u.Shard, shardCount(batches))
	case u.Bundle:
		return bundleShards(u.Shard, shardCount(batches))
	}
	return u.Shard, u.Shard + 1
}

// halves are the names of the parts of each half of a stage's statistics, of so many batches.
func halves(k *keeper, layer, stage, parts, batches int) (names [][]string) {
	u := unitSpec{Kind: unitObserve, Layer: layer, Stage: stage, Half: true}
	for u.Shard = range u.count(batches) {
		names = append(names, u.observed(k, parts))
	}
	return names
}

// summed are the names of the parts of a stage's sums.
func summed(k *keeper, layer, stage, parts int) (names []string) {
	for part := range parts {
		names = append(names, (&unitSpec{Kind: unitSum, Layer: layer, Stage: stage, Part: part}).name(k))
	}
	return names
}

// unit is what an engine is given. Units of a key are to be done where its other units were.
func (u *unitSpec) unit(k *keeper, size int64, key string) engine.Unit {
	spec, err := json.Marshal(u)
	if err != nil {
		panic(err) // numbers and strings
	}
	return engine.Unit{Name: u.name(k), Spec: spec, Size: size, Key: key}
}

// Kinds of jobs: see NewWorker.
const (
	jobLayers    = "layers"    // of Run's attempts
	jobEffects   = "effects"   // of Assign: what probes in tensors' places do to the predictions
	jobGradients = "gradients" // of Run: Hessians of outputs
)

// jobSpec is what a worker must know of an attempt besides the checkpoint and the recipe.
type jobSpec struct {
	Run          int
	Source       string // SourceDigest
	Types        []jobType
	Sequences    int
	SeqLen       int
	NoCorrection bool
	Outputs      bool // there are Hessians of outputs in the work folder
}

// jobType is a tensor's type in the plan.
type jobType struct{ Name, Type, Wanted string }

// job describes the attempt to workers.
func (p *passage) job() (*jobSpec, error) {
	digest, err := SourceDigest(p.src)
	if err != nil {
		return nil, err
	}
	j := &jobSpec{Run: p.kept.done.Run, Source: digest, Sequences: len(p.opt.Calib.Sequences), SeqLen: p.opt.Calib.SeqLen,
		NoCorrection: p.opt.NoCorrection, Outputs: p.found.outputs != nil}
	for i := range p.plan.Tensors {
		t := &p.plan.Tensors[i]
		j.Types = append(j.Types, jobType{t.Name, t.Type.Name, t.Wanted.Name})
	}
	return j, nil
}

// apply gives the tensors of a plan, made from the same checkpoint and recipe, the types of the job's.
func (j *jobSpec) apply(p *Plan) (*Plan, error) {
	if len(j.Types) != len(p.Tensors) {
		return nil, fmt.Errorf("the job has %d tensors, the plan made of the checkpoint here %d", len(j.Types), len(p.Tensors))
	}
	next := *p
	next.Tensors = make([]Tensor, len(p.Tensors))
	for i := range p.Tensors {
		t := p.Tensors[i]
		of := j.Types[i]
		if of.Name != t.Name {
			return nil, fmt.Errorf("tensor %d of the job is %q, of the checkpoint here %q", i, of.Name, t.Name)
		}
		var err error
		if t.Type, err = ggml.ByName(of.Type); err == nil {
			t.Wanted, err = ggml.ByName(of.Wanted)
		}
		if err != nil {
			return nil, fmt.Errorf("tensor %q of the job: %w", of.Name, err)
		}
		next.Tensors[i] = t
	}
	return &next, nil
}

// Divisible says why the recipe's work cannot be divided among machines: nil if it can.
func (r *Recipe) Divisible() error {
	needs := r.Method.Needs()
	switch {
	case needs.Decides || len(r.transforms()) > 0:
		return undivided("methods that scale channels (awq, auto, --smooth)")
	case needs.Int8Inputs:
		return undivided("method " + r.Method.Name())
	}
	return nil
}

func undivided(what string) error {
	return fmt.Errorf("%s: not yet divided among machines: run it on one", what)
}

// checkEngine refuses what there are no units for.
func (t *task) checkEngine() error {
	switch {
	case t.opt.Engine == nil:
		return nil
	case t.opt.Calib == nil || t.opt.Work == nil:
		return fmt.Errorf("many machines share the calibration text's work in a work folder: give both")
	}
	if err := t.plan.Recipe.Divisible(); err != nil {
		return err
	}
	if t.mayFallBack() {
		return undivided("falling back to q8_0")
	}
	return nil
}
