package arch

import "github.com/llmq/llmq/model"

// routing is how a router's logits become the choice and the weights of experts, as GGUF metadata give it.
type routing struct {
	gating             model.Gating
	groups, groupsUsed int
	normalize          bool
	scale              float32
}

// readRouting reads it; gating is taken where the metadata are silent.
func (h *hyper) readRouting(k *model.Keys, gating model.Gating) *routing {
	r := &routing{gating: gating}
	switch n := k.Int("expert_gating_func", 0, 0, 4); n {
	case 0:
	case 1:
		r.gating = model.GateSoftmax
	case 2:
		r.gating = model.GateSigmoid
	default:
		k.Fail("expert_gating_func", "is %d; supported: 1 (softmax), 2 (sigmoid)", n)
	}
	r.groups = k.Int("expert_group_count", 0, 0, model.MaxWidth)
	r.groupsUsed = k.Int("expert_group_used_count", r.groups, 0, model.MaxWidth)
	if r.groups > 1 && (h.experts%r.groups != 0 || r.groupsUsed < 1 || r.groupsUsed > r.groups ||
		h.experts/r.groups*r.groupsUsed < h.expertsUsed) {
		k.Fail("expert_group_count", "is %d, of which %d are used, for %d of %d experts", r.groups, r.groupsUsed, h.expertsUsed, h.experts)
	}
	r.normalize = k.Bool("expert_weights_norm", false)
	r.scale = float32(k.Float("expert_weights_scale", 0, -1, model.MaxWidth))
	return r
}

// apply sets a mixture's routing.
func (r *routing) apply(m *model.MoE) {
	m.Gating, m.Groups, m.GroupsUsed, m.Normalize, m.Scale = r.gating, r.groups, r.groupsUsed, r.normalize, r.scale
}
