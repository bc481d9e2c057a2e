package pipeline

import (
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
)

// statsBytes bounds the statistics of the experts that are quantized together; tests set it.
var statsBytes int64 = 2 << 30

// expertBytes is what an expert with so many inputs counts of them: H, what it lacks, and its factor.
func expertBytes(in int) int64 { return 3 * 4 * int64(in) * int64(in) }

// experts quantizes a stage with a site for each expert, or attention head. Every expert has statistics of its own, of the
// tokens that reach it. They are shrunk towards those of all experts, more so the fewer tokens there were.
func (p *passage) experts(at *place) error {
	sites, st := at.stage().Sites, at.s.st
	defer func() {
		st.OnlyExperts(0, 0)
		at.reached = nil
	}()
	var pooled *quant.Stats
	for first := 0; first < len(sites); {
		last := first
		for bytes := int64(0); last < len(sites); last++ {
			n := expertBytes(sites[last].In())
			if p.uncorrected(at, last) {
				n -= n / 3
			}
			if bytes += n; bytes > statsBytes && last > first {
				break
			}
		}
		pool := first == 0 && !sites[0].Head
		if !pool && (last < len(sites) || sites[last-1].Expert >= 0) {
			st.OnlyExperts(first, last)
		}
		if at.original != nil && last < len(sites) && !sites[first].Head {
			at.original.st.OnlyExperts(first, last) // it stays before the stage until the last of its sites are seen
		}
		in, all, err := p.observe(at, first, last, pool)
		if at.original != nil {
			at.original.st.OnlyExperts(0, 0)
		}
		if err != nil {
			return err
		}
		if pool {
			pooled = all
		}
		st.OnlyExperts(0, 0)
		at.rest()
		for j, stats := range in {
			site := sites[first+j]
			var tokens []int
			if site.Expert >= 0 && !site.Head {
				tokens = []int{stats.Tokens}
				shrink(stats, pooled)
			}
			if err := p.site(at.l, site, stats, tokens); err != nil {
				return err
			}
			in[j] = nil
		}
		first = last
	}
	if at.original != nil {
		at.original.passed(at.ol, at.k)
	}
	return nil
}

// uncorrected says that site j of the stage is an expert whose inputs, what shrink adds to them counted, are too few for a correction
// of its weights: what they lack need not be summed. Before the experts' tokens are counted it is true of none.
func (p *passage) uncorrected(at *place, j int) bool {
	site := at.stage().Sites[j]
	if at.reached == nil || site.Expert < 0 || site.Head || p.plan.Recipe.BiasCorrection { // which goes by what the means lack
		return false
	}
	n, _ := shrinkBy(at.reached[j], site.In())
	return !gptq.Correctable(site.In(), at.reached[j]+n)
}

// shrinkTokens is how many tokens of all experts' inputs, for each feature, are added to an expert's own: where an expert
// has seen as many, both count the same.
const shrinkTokens = 0.25

// shrinkBy returns how many tokens of all experts are added to an expert with so many inputs that as many tokens reached; 0 and false
// where they would not count.
func shrinkBy(tokens, in int) (n int, ok bool) {
	n = max(1, int(shrinkTokens*float64(in)))
	if tokens >= 64*n {
		return 0, false
	}
	return n, true
}

// shrink adds to in, the statistics of one expert, those of all experts, as if some of their tokens had reached it.
func shrink(in, all *quant.Stats) {
	n, ok := shrinkBy(in.Tokens, in.H.Rows)
	if all.Tokens == 0 || !ok {
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
