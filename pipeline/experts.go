package pipeline

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// experts quantizes a stage with a site for each expert, or attention head. Every expert has statistics of its own, of the tokens that reach
// it. They are shrunk towards those of all experts, more so the fewer tokens there were.
func (r *run) experts(s, original *stream, l, ol *model.Layer, k int) error {
	stage := &l.Stages[k]
	defer s.st.OnlyExperts(0, 0)
	var pooled *quant.Stats
	for first := 0; first < len(stage.Sites); {
		last := first
		for bytes := int64(0); last < len(stage.Sites); last++ {
			n := int64(stage.Sites[last].In())
			if bytes += 3 * 4 * n * n; bytes > statsBytes && last > first { // H, what it lacks, and its factor
				break
			}
		}
		in := make([]*quant.Stats, last-first)
		for j := range in {
			in[j] = quant.NewStats(stage.Sites[first+j].In())
		}
		var all *quant.Stats
		if first == 0 && !stage.Sites[0].Head {
			pooled = quant.NewStats(stage.Sites[0].In())
			all = pooled
		} else if last < len(stage.Sites) || stage.Sites[last-1].Expert >= 0 {
			s.st.OnlyExperts(first, last)
		}
		if err := r.observeStage(s, original, l, ol, k, first, in, all); err != nil {
			return err
		}
		s.st.OnlyExperts(0, 0)
		for j, stats := range in {
			site := stage.Sites[first+j]
			if site.Expert >= 0 && !site.Head {
				r.noteTokens(site, stats.Tokens)
				shrink(stats, pooled)
			}
			if err := r.quantizeSite(l, site, stats); err != nil {
				return err
			}
			in[j] = nil
		}
		first = last
	}
	if original != nil {
		original.passed(ol, k)
	}
	return nil
}

// shrinkTokens is how many tokens of all experts' inputs, for each feature, are added to an expert's own: where an expert
// has seen as many, both count the same.
const shrinkTokens = 0.25

// shrink adds to in, the statistics of one expert, those of all experts, as if some of their tokens had reached it.
func shrink(in, all *quant.Stats) {
	n := max(1, int(shrinkTokens*float64(in.H.Rows)))
	if all.Tokens == 0 || in.Tokens >= 64*n {
		return
	}
	share := float32(n) / float32(all.Tokens)
	kernels.Parallel(in.H.Rows, 16, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			vector.Axpy(in.H.Row(i), share, all.H.Row(i))
		}
	})
	for j, v := range all.Sum {
		in.Sum[j] += float64(share) * v
	}
	in.Tokens += n
}

// noteTokens reports how many calibration tokens have reached an expert.
func (r *run) noteTokens(site *model.Site, tokens int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, lin := range site.Linears {
		list := r.expertTokens[lin.Name]
		for len(list) <= site.Expert {
			list = append(list, 0)
		}
		list[site.Expert] = tokens
		r.expertTokens[lin.Name] = list
	}
}
