package model

// SiteShape is a site without its weights: what runs need to know of all layers before the first is loaded.
type SiteShape struct {
	Name   string
	Expert int
	Head   bool
	In     int
	Out    []int // of each linear
	Names  []string
	// Of its stage: its place in the layer, and as Stage has them.
	Stage                         int
	Begins, Carries, Adds, Inside bool
	Hides                         bool // Stage.Hides
}

// Stands says that a stream which keeps all that it can may stand before the site's stage.
func (s *SiteShape) Stands() bool { return s.Begins || s.Carries && !s.Inside || s.Hides }

// shape describes the layer's sites.
func (l *Layer) shape() []SiteShape {
	var shapes []SiteShape
	for i := range l.Stages {
		for _, s := range l.Stages[i].Sites {
			shape := SiteShape{Name: s.Name, Expert: s.Expert, Head: s.Head, In: s.In(), Stage: i,
				Begins: l.Stages[i].Begins, Carries: l.Stages[i].Carries, Adds: l.Stages[i].Adds, Inside: l.Stages[i].Inside,
				Hides: l.Stages[i].Hides()}
			for _, lin := range s.Linears {
				shape.Out = append(shape.Out, lin.Out)
				shape.Names = append(shape.Names, lin.Name)
			}
			shapes = append(shapes, shape)
		}
	}
	return shapes
}

// Shape lists the sites of layer i in the order of the forward pass.
func (m *Model) Shape(i int) []SiteShape { return m.shapes[i] }

// LayerWeights is the number of weights in layer i's linears.
func (m *Model) LayerWeights(i int) int64 {
	var n int64
	for _, s := range m.shapes[i] {
		for _, out := range s.Out {
			n += int64(out) * int64(s.In)
		}
	}
	return n
}

// Copied is what layer i takes beside the source's mapped pages, in bytes: held are copies that the source makes of linears, as
// long as the layer is there, and fetched is the most that the experts of a site take while they are used.
func (m *Model) Copied(i int) (held, fetched int64) {
	for _, s := range m.shapes[i] {
		var site int64
		for j, name := range s.Names {
			lo := max(s.Expert, 0) * s.Out[j]
			if m.copies(name, lo, lo+s.Out[j]) {
				site += int64(s.Out[j]) * int64(m.tensors[name].Type.RowBytes(s.In))
			}
		}
		if s.Expert >= 0 && !s.Head {
			fetched = max(fetched, site)
		} else {
			held += site
		}
	}
	return held, fetched
}

// Carried is the largest input of a site that is worth keeping beside the hidden states, in features; 0: none is.
func (m *Model) Carried() int {
	most := 0
	for _, shapes := range m.shapes {
		for _, s := range shapes {
			if s.Carries && !s.Inside {
				most = max(most, s.In)
			}
		}
	}
	return most
}

// Hidden is the largest input of a stage that hides, in features. 0: there is none.
func (m *Model) Hidden() int {
	most := 0
	for _, shapes := range m.shapes {
		for _, s := range shapes {
			if s.Hides {
				most = max(most, s.In)
			}
		}
	}
	return most
}

// Widest is the largest input of a site, in features.
func (m *Model) Widest() int {
	most := m.Dim
	for _, shapes := range m.shapes {
		for _, s := range shapes {
			most = max(most, s.In)
		}
	}
	return most
}

// Computed is how many features layer i computes for a token, the experts' as often as a token reaches some at most.
func (m *Model) Computed(i int) int64 {
	var outputs, experts int64
	for _, s := range m.shapes[i] {
		var out int64
		for _, o := range s.Out {
			out += int64(o)
		}
		switch {
		case s.Head:
			outputs += int64(s.In)
		case s.Expert >= 0:
			experts = max(experts, 2*(out+int64(s.In)))
			continue
		}
		outputs += out
	}
	return outputs + experts*int64(max(1, m.ExpertsUsed()))
}

// ExpertsUsed is how many experts a token reaches in a layer; 0: there are none.
func (m *Model) ExpertsUsed() int { return m.spec.ExpertsUsed }

// LayerOf returns the layer that a linear, given by its weight's name, is in; −1 if there is none.
func (m *Model) LayerOf(name string) int {
	for i, shapes := range m.shapes {
		for _, s := range shapes {
			for _, n := range s.Names {
				if n == name {
					return i
				}
			}
		}
	}
	return -1
}
