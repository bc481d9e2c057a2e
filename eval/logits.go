package eval

import (
	"context"
	"fmt"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Logits computes what m says of each position of sequences of equal length, each read alone, with no token put in front.
// write gets the rows of one sequence after the other, in parts of some positions: positions×vocabulary.
func Logits(ctx context.Context, m *model.Model, sequences [][]int32, opt Options, write func(logits *tensor.Matrix) error) error {
	p := &plan{context: len(sequences[0]), chunks: len(sequences), memory: opt.Memory, tempDir: opt.TempDir, progress: opt.Progress}
	if p.progress == nil {
		p.progress = silent{}
	}
	if err := m.CheckLength(p.context); err != nil {
		return fmt.Errorf("eval: %w", err)
	}
	for i, s := range sequences {
		if len(s) != p.context || p.context == 0 {
			return fmt.Errorf("eval: sequence %d has %d tokens, the first %d", i, len(s), p.context)
		}
		p.tokens = append(p.tokens, s...)
	}
	p.batch = max(1, DefaultBatchTokens/p.context)
	r := newRun(m)
	defer r.close()
	p.progress.Stage("logits", p.work(m)*int64(p.chunks))
	defer p.progress.Done()
	if err := r.embed(p); err != nil {
		return err
	}
	for i := range m.Layers() {
		p.progress.Item(fmt.Sprintf("layer %d/%d", i+1, m.Layers()))
		l, err := m.LoadLayer(i)
		if err != nil {
			return err
		}
		m.ReadAhead(i + 1)
		err = r.forward(ctx, l, p.context, p.context, p.progress)
		l.Release()
		if err != nil {
			return err
		}
	}
	p.progress.Item("head")
	head, err := m.LoadHead()
	if err != nil {
		return err
	}
	defer head.Release()
	step := min(p.context, max(1, headValues/m.Vocab))
	logits := tensor.New(step, m.Vocab)
	return r.each(func(_, _ int, x *tensor.Matrix) error {
		for lo := 0; lo < x.Rows; lo += p.context {
			for from := 0; from < p.context; from += step {
				if err := ctx.Err(); err != nil {
					return err
				}
				to := min(from+step, p.context)
				part := logits.View(0, to-from, 0, m.Vocab)
				head.Logits(part, x.View(lo+from, lo+to, 0, x.Cols))
				if err := write(part); err != nil {
					return err
				}
				p.progress.Add(int64(to-from) * int64(m.Vocab) * int64(m.Dim))
			}
		}
		return nil
	})
}
