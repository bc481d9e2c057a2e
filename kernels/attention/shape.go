package attention

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// Shape says what attention is computed: token t of head h takes Σ_s p_s·v_s, p being the softmax of
// Scale·q_t·k_s over s ≤ t and, if Window > 0, s > t−Window.
type Shape struct {
	Heads, KVHeads   int // consecutive query heads share a key head
	KeyDim, ValueDim int // features of a head in q and k, and in v and the result
	Window           int
	Scale            float32
	Softcap          float32   // c: scores become c·tanh(score/c) (Bello et al., arXiv:1611.09940); 0: they do not
	Sinks            []float32 // by query head, a score that takes part in the softmax without a value; nil: none
}

// sumBlock is how many exponentials are summed in float32 before they are added in float64.
const sumBlock = 1024

// Of sets dst, rows×(Heads·ValueDim), to causal attention over one sequence: k is tokens×(KVHeads·KeyDim), v
// tokens×(KVHeads·ValueDim), q rows×(Heads·KeyDim), as many rows as tokens or fewer, for the last tokens alone. The plain
// shapes are Causal's; others have all scores of a head in memory, in float32.
func Of(a *Shape, dst, q, k, v *tensor.Matrix, p kernels.Precision) {
	if a.Softcap == 0 && a.Sinks == nil && a.KeyDim == a.ValueDim {
		Causal(dst, q, k, v, a.Heads, a.KVHeads, a.KeyDim, a.Window, a.Scale, p)
		return
	}
	if a.KVHeads <= 0 || a.Heads%a.KVHeads != 0 || q.Cols != a.Heads*a.KeyDim || k.Cols != a.KVHeads*a.KeyDim ||
		v.Cols != a.KVHeads*a.ValueDim || dst.Cols != a.Heads*a.ValueDim || dst.Rows != q.Rows || k.Rows < q.Rows ||
		v.Rows != k.Rows || a.Sinks != nil && len(a.Sinks) != a.Heads {
		panic("kernels: attention shapes do not agree")
	}
	scores := tensor.New(q.Rows, k.Rows)
	for h := range a.Heads {
		kv := h / (a.Heads / a.KVHeads)
		gemm.MatMulF32(scores, q.View(0, q.Rows, h*a.KeyDim, (h+1)*a.KeyDim), k.View(0, k.Rows, kv*a.KeyDim, (kv+1)*a.KeyDim))
		kernels.Parallel(q.Rows, 8, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				a.weigh(scores.Row(i), h, k.Rows-q.Rows+i)
			}
		})
		out := dst.View(0, dst.Rows, h*a.ValueDim, (h+1)*a.ValueDim)
		out.Zero()
		gemm.NN(out, 1, scores, v.View(0, v.Rows, kv*a.ValueDim, (kv+1)*a.ValueDim), kernels.F32)
	}
}

// weigh makes q_t·k_s for all s into the softmax's weights, zero for tokens that t does not see.
func (a *Shape) weigh(row []float32, head, t int) {
	first := 0
	if a.Window > 0 {
		first = max(0, t-a.Window+1)
	}
	seen := row[first : t+1]
	for s := range seen {
		seen[s] *= a.Scale
		if a.Softcap != 0 {
			seen[s] = float32(float64(a.Softcap) * math.Tanh(float64(seen[s])/float64(a.Softcap)))
		}
	}
	largest := elementwise.Max(seen)
	if a.Sinks != nil {
		largest = max(largest, a.Sinks[head])
	}
	var sum float64
	for i := 0; i < len(seen); i += sumBlock {
		part := seen[i:min(i+sumBlock, len(seen))]
		sum += float64(elementwise.ExpSum(part, part, largest))
	}
	if a.Sinks != nil {
		sum += math.Exp(float64(a.Sinks[head] - largest))
	}
	elementwise.Scale(seen, float32(1/sum))
	clear(row[:first])
	clear(row[t+1:])
}
