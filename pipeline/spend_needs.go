package pipeline

import (
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/model"
)

// passingDisk follows a run on a source whose weights come and go: what of them is there, of the output, and of the hidden states.
type passingDisk struct {
	*task
	src                     model.Passing
	come                    map[string]int64 // how much of each file has
	spent                   map[model.Place]bool
	weights, output, states int64
	most                    int64
	grows                   bool // the output takes room as it is written
}

// PassingDisk is the most that a run takes of the disk, of a source whose weights come and go: these, the output and, with a work folder on the
// same disk, what that holds. Without a work folder all of the output is there from the beginning. 0: the source is of another kind. m is nil of
// a run that is not calibrated.
func (p *Plan) PassingDisk(src Source, m *model.Model, tokens, seqLen int, work bool) int64 {
	d := &passingDisk{task: &task{plan: p, m: m, src: src}, src: model.PassingOf(src), come: map[string]int64{}, spent: map[model.Place]bool{}, grows: work}
	if d.src == nil {
		return 0
	}
	d.output = p.Size() // headers, to begin with
	for i := range p.Tensors {
		t := &p.Tensors[i]
		if work {
			d.output -= t.Bytes()
		}
		if len(t.Shape) == 1 { // they come alone, and stay
			for _, a := range d.src.Places(t.Name) {
				d.weights += a.Hi - a.Lo
			}
		}
	}
	d.convert((*Tensor).embeds)
	d.convert((*Tensor).carried)
	d.convert(func(t *Tensor) bool { return !t.embeds() && !t.carried() })
	if m == nil {
		return d.most
	}
	all, each := d.statesBytes(tokens, seqLen)
	for i := range m.Layers() {
		d.layer(i)
		if work && i == 0 {
			d.states = all
		}
		d.see(0)
		if work && i > 0 && (i+1 < m.Layers() || d.calibratesHead()) {
			d.see(each)
		}
		d.spend(func(t *Tensor) bool { return t.spentBehind(i) })
	}
	d.head()
	return d.most
}

// see looks at what is there, with so many bytes more.
func (d *passingDisk) see(more int64) { d.most = max(d.most, d.weights+d.output+d.states+more) }

// write adds to the output.
func (d *passingDisk) write(bytes int64) {
	if d.grows {
		d.output += bytes
	}
	d.see(0)
}

// fetch has a tensor come.
func (d *passingDisk) fetch(t *Tensor) {
	for _, a := range d.src.Places(t.Name) {
		if n := a.Hi - d.come[a.File]; n > 0 {
			d.weights += n
			d.come[a.File] = a.Hi
		}
	}
	d.see(0)
}

// spend has tensors go.
func (d *passingDisk) spend(which func(t *Tensor) bool) {
	for i := range d.plan.Tensors {
		if t := &d.plan.Tensors[i]; which(t) {
			for _, a := range d.src.Places(t.Name) {
				if !d.spent[a] {
					d.spent[a] = true
					d.weights -= a.Hi - a.Lo
				}
			}
		}
	}
}

// convert is writer.convertThose.
func (d *passingDisk) convert(those func(t *Tensor) bool) {
	for i := range d.plan.Tensors {
		t := &d.plan.Tensors[i]
		if d.calibrates(t) || d.m != nil && t.Role == model.RoleHead || !those(t) {
			continue
		}
		if len(t.Shape) > 1 {
			d.fetch(t)
		}
		d.write(t.Bytes())
		if d.m == nil && len(t.Shape) > 1 || t.carried() {
			d.spend(func(other *Tensor) bool { return other == t })
		}
	}
}

// layer is passage.layer.
func (d *passingDisk) layer(i int) {
	var rows int64
	for k := range d.plan.Tensors {
		if t := &d.plan.Tensors[k]; ggml.ParseName(t.Name).Layer == i && d.calibrates(t) {
			if len(t.Shape) > 1 {
				d.fetch(t)
			}
			rows += t.Bytes()
		}
	}
	if t := d.plan.Lookup(outputName); t != nil && !d.calibrates(t) {
		here := true
		for _, a := range d.src.Places(outputName) {
			here = here && a.Hi <= d.come[a.File]
		}
		if here {
			d.head()
		}
	}
	d.write(rows)
}

// head is passage.head, and writer.convertParts.
func (d *passingDisk) head() {
	t := d.plan.Lookup(outputName)
	places := d.src.Places(outputName)
	if t == nil || len(places) > 0 && d.spent[places[0]] {
		return
	}
	d.fetch(t)
	step := t.Rows()
	if !d.calibrates(t) {
		step = headStep(t)
	}
	before := d.weights
	d.spend(func(other *Tensor) bool { return other == t })
	went := before - d.weights
	d.weights = before
	for lo := 0; lo < t.Rows(); lo += step {
		n := int64(min(step, t.Rows()-lo))
		d.write(t.Bytes() * n / int64(t.Rows()))
		d.weights -= went * n / int64(t.Rows())
	}
}
