package model

import (
	"math"

	"github.com/llmq/llmq/tensor"
)

// PerLayer is Proj·(act(Gate·x) ⊙ e), with an embedding e of the token for the layer: per-layer embeddings (Gemma 3n,
// Gemma 4). State.Aux has e from column At on.
type PerLayer struct {
	Gate, Proj *Linear
	Act        Activation
	At         int
}

// Branch is the function of its input.
func (f *PerLayer) Branch() Branch {
	return Branch{
		Stages: []Stage{{
			Sites:    []*Site{{Name: "per_layer_in", Expert: -1, Linears: []*Linear{f.Gate}}},
			ReadsAux: true,
			Apply: func(st *State) {
				g := st.apply(st.In, []string{"per layer"}, f.Gate)[0]
				e := st.Aux.View(0, st.Aux.Rows, f.At, f.At+f.Gate.Out)
				if g.Rows < e.Rows {
					e = st.lastOf("per layer last", e)
				}
				f.Act.gated(st.table, g, g, e)
				st.In = g
			},
		}},
		Out:  &Site{Name: "per_layer_out", Expert: -1, Linears: []*Linear{f.Proj}},
		Back: f,
	}
}

// back is a derivative: dz is the gradient at Proj's input.
func (f *PerLayer) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	g := st.apply(h, []string{"per layer"}, f.Gate)[0]
	unused := st.Scratch("back per layer", g.Rows, g.Cols) // the embedding does not depend on any linear of a layer
	f.Act.gatedBack(g, unused, dz, g, st.Aux.View(0, st.Aux.Rows, f.At, f.At+f.Gate.Out))
	d.back(st, f.Gate, dh, g)
}

// PerLayerEmbeddings makes the embeddings e of a token for all layers: those of a table and a projection of the token's
// embedding x, (√Width·Table[token] + Norm(Proj·x/√D)) / √2, with Width features and a norm for each layer.
type PerLayerEmbeddings struct {
	Width int
	Name  string // of the table
	Table func(dst *tensor.Matrix, tokens []int32) error
	Proj  *Linear
	Norm  *Norm
}

// Embed sets dst, tokens×(layers·Width), for the embeddings x, tokens×D.
func (p *PerLayerEmbeddings) Embed(dst, x *tensor.Matrix, tokens []int32, replace ReplaceRows) error {
	table := tensor.New(dst.Rows, dst.Cols)
	if err := p.Table(table, tokens); err != nil {
		return err
	}
	if replace != nil {
		if err := replace(p.Name, table); err != nil {
			return err
		}
	}
	in := tensor.New(x.Rows, x.Cols) // without padding
	for t := range x.Rows {
		copy(in.Row(t), x.Row(t))
	}
	proj := tensor.New(dst.Rows, dst.Cols)
	p.Proj.exact(proj, in)
	byRows(dst.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			row := proj.Row(t)
			for j := range row {
				row[j] *= float32(1 / math.Sqrt(float64(x.Cols)))
			}
			heads := tensor.FromSlice(len(row)/p.Width, p.Width, row)
			p.Norm.rows(heads, heads)
			scale, half := float32(math.Sqrt(float64(p.Width))), float32(1/math.Sqrt2)
			for j, e := range table.Row(t) {
				dst.Row(t)[j] = (row[j] + e*scale) * half
			}
		}
	})
	return nil
}
