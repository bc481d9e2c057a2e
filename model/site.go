package model

import (
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Site is linears that share one input, and what comes before it.
type Site struct {
	Layer int
	// Name says what the input is, within the layer: "attn_in", "attn_out", "mlp_in" or "mlp_out", and the like.
	Name string
	// Expert is the expert that the linears belong to, −1 where they see all tokens.
	Expert int
	// Head says that it is an attention head instead, one of several in one tensor, and sees all tokens too.
	Head    bool
	Linears []*Linear
	// Prev is what could absorb a scaling of the input's channels; nil if nothing could.
	Prev *quant.Scaler
	// Shares names the features that the input has in common with the sites of other layers; "" if they are its own.
	Shares string
}

// ID is the site's name in the model: "blk.0.attn_in", "blk.0.ffn_exps_in[3]".
func (s *Site) ID() string {
	id := ggml.LayerName(s.Layer) + "." + s.Name
	if s.Expert >= 0 {
		id = ggml.ExpertName(id, s.Expert)
	}
	return id
}

// In is the number of features of the site's input.
func (s *Site) In() int { return s.Linears[0].In }

// Stage is a step through a layer: the linears of its sites, from their inputs to what follows from their results.
type Stage struct {
	// Sites are one, or one for each expert and, last, one for all tokens.
	Sites []*Site
	// Prepare computes the sites' input, st.In, from st.X; nil where the stage before has left it in st.In.
	Prepare func(st *State)
	// Input returns what of st.In reaches site i, and which of the batch's tokens these rows are; nil rows: all. Input
	// nil: every site sees st.In.
	Input func(st *State, i int) (in *tensor.Matrix, tokens []int)
	// Apply puts st.In through the linears. What follows is in st.In for the next stage, or in st.X.
	Apply func(st *State)
	// Begins says that the stage's input depends on st.X alone: a layer can be entered here.
	Begins bool
	// Carries says that the input is expensive to compute, attention's result, so that it is worth keeping beside X.
	Carries bool
	// Adds says that Apply adds the result of the site's one linear to st.X, and nothing else.
	Adds bool
	// Inside says that it or a later stage needs more from before it than st.X and st.In: what branches beside it have computed. A layer
	// cannot be entered here.
	Inside bool
	// ReadsAux says that Apply reads State.Aux, so that what it computes does not follow from its input alone.
	ReadsAux bool
}

// Hides says that the layer can be entered here with the input of its one linear, which is added to st.X: an MLP's inner activations, which
// are worth keeping where there is room.
func (s *Stage) Hides() bool {
	return s.Adds && !s.Begins && !s.Carries && !s.Inside && len(s.Sites) == 1
}

// InputOf is Input, or what it stands for where it is nil.
func (s *Stage) InputOf(st *State, i int) (*tensor.Matrix, []int) {
	if s.Input == nil {
		return st.In, nil
	}
	return s.Input(st, i)
}

// Width is the number of features of st.In.
func (s *Stage) Width() int { return s.Sites[0].In() }
