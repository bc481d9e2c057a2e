package arch

import "github.com/llmq/llmq/model"

// stateSpace are the hyperparameters of Mamba-2 layers.
type stateSpace struct{ inner, heads, groups, state, width int }

// channels is the number of features that go through the convolution.
func (s *stateSpace) channels() int { return s.inner + 2*s.groups*s.state }

// valid says what is wrong with hyperparameters, "" if nothing is.
func (s *stateSpace) valid() string {
	switch {
	case s.heads > 0 && s.inner%s.heads != 0:
		return "does not divide into the heads of the state space"
	case s.groups > 0 && (s.heads%s.groups != 0 || s.inner%s.groups != 0):
		return "of the state space does not divide into its groups"
	}
	return ""
}

func (c *Conversion) setStateSpace(s *stateSpace) {
	c.SetInt("ssm.conv_kernel", s.width)
	c.SetInt("ssm.state_size", s.state)
	c.SetInt("ssm.group_count", s.groups)
	c.SetInt("ssm.inner_size", s.inner)
	c.SetInt("ssm.time_step_rank", s.heads)
}

// wantTimeSteps refuses bounds of the time steps, which readers do not know.
func (c *Conversion) wantTimeSteps(key string) {
	if limits := c.Config.Floats(key); limits != nil && (len(limits) != 2 || limits[0] > 0 || limits[1] < 1e30) {
		c.Refuse(key, "GGUF readers do not bound time steps")
	}
}

// mamba2 declares a Mamba-2 layer that the checkpoint has under a prefix. Readers want a bias of the convolution.
func (l *Layer) mamba2(prefix string, r *Config, s *stateSpace, convBias, norm bool) (in, out Tensors) {
	in = l.Linear("ssm_in", prefix+"in_proj", s.inner+s.channels()+s.heads, r.Dim, false)
	l.Taps("ssm_conv1d.weight", prefix+"conv1d.weight", s.channels(), s.width)
	if convBias {
		l.Tensor("ssm_conv1d.bias", prefix+"conv1d.bias", s.channels())
	} else {
		l.c.Values(l.gguf+"ssm_conv1d.bias", make([]float32, s.channels()))
	}
	l.Tensor("ssm_dt.bias", prefix+"dt_bias", s.heads)
	Tensors{l.Cut("ssm_a", prefix+"A_log", s.heads, 1)}.Each(func(x float32) float32 { return -exp32(x) })
	l.Cut("ssm_d", prefix+"D", s.heads, 1)
	if norm {
		l.Cut("ssm_norm.weight", prefix+"norm.weight", s.groups, s.inner/s.groups)
	}
	return in, l.Linear("ssm_out", prefix+"out_proj", r.Dim, s.inner, false)
}

// Cut declares a matrix whose rows follow each other in a vector of the checkpoint.
func (l *Layer) Cut(name, from string, rows, cols int) *Tensor {
	p := l.c.part(l.hf+from, rows*cols)
	p.Count = rows * cols
	return l.c.add(l.gguf+name, []int{rows, cols}, p)
}

func readStateSpace(k *model.Keys) *stateSpace {
	s := &stateSpace{
		inner:  k.Int("ssm.inner_size", -1, 1, model.MaxWidth),
		heads:  k.Int("ssm.time_step_rank", -1, 1, model.MaxWidth),
		groups: k.Int("ssm.group_count", -1, 1, model.MaxWidth),
		state:  k.Int("ssm.state_size", -1, 1, model.MaxWidth),
		width:  k.Int("ssm.conv_kernel", -1, 1, model.MaxWidth),
	}
	if what := s.valid(); k.Err() == nil && what != "" {
		k.Fail("ssm.inner_size", "%d %s (%d heads, %d groups)", s.inner, what, s.heads, s.groups)
	}
	return s
}

// mamba2 is a Mamba-2 layer.
func (h *hyper) mamba2(b *model.Loader, s *stateSpace, norm model.Presence) *model.Mamba2 {
	m := &model.Mamba2{Inner: s.inner, Heads: s.heads, Groups: s.groups, State: s.state, Width: s.width}
	m.In = b.Linear("ssm_in", m.InWidth(), h.dim, model.Absent)
	m.Taps = b.Values("ssm_conv1d.weight", model.RoleKept, model.Required, m.Channels(), s.width)
	m.TapsBias = b.Vector("ssm_conv1d.bias", m.Channels(), model.Optional)
	m.DtBias = b.Vector("ssm_dt.bias", s.heads, model.Required)
	m.A = b.Values("ssm_a", model.RoleKept, model.Required, s.heads, 1)
	m.D = b.Values("ssm_d", model.RoleKept, model.Required, s.heads, 1)
	if norm == model.Required || b.Has("ssm_norm.weight") {
		m.Norm = &model.Norm{Name: b.Full("ssm_norm.weight"), Eps: h.eps,
			W: b.Values("ssm_norm.weight", model.RoleVector, norm, s.groups, s.inner/max(s.groups, 1))}
	}
	m.Out = b.Linear("ssm_out", h.dim, s.inner, model.Absent)
	return m
}
