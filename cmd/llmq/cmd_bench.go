package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/bench"
	"github.com/llmq/llmq/kernels"
)

type benchOptions struct {
	Model     string
	Types     []string
	Tokens    []int
	Shapes    []string
	Precision precisionValue
	Threads   int
	JSON      bool
}

func (o *benchOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.Types, "type", nil, "block types to measure (default all)")
	choose(f, "type", typeNames())
	f.IntSliceVar(&o.Tokens, "tokens", nil, fmt.Sprintf("tokens in a product (default %s); for MODEL, in its sequence (default 512)", join(bench.Tokens)))
	f.StringSliceVar(&o.Shapes, "shape", nil, "INxOUT of a linear (default 2048x2048,4096x4096,4096x14336,14336x4096)")
	f.Var(&o.Precision, "precision", precisionUsage)
	f.IntVar(&o.Threads, "threads", 0, "use `N` processors (0: all)")
	f.BoolVar(&o.JSON, "json", false, "print one JSON object")
}

func join(numbers []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(numbers), " ", ","), "[]")
}

func (a *app) benchCommand() *cobra.Command {
	var opts benchOptions
	cmd := &cobra.Command{
		Use:   "bench [MODEL]",
		Short: "Measure the machine, and the kernels or a model against it",
		Long: `Without MODEL, measures the machine's limits (arithmetic and memory, with one thread and with all), then every kernel at
shapes of real models, each as a rate and as its share of the limit that bounds it.

With MODEL, times each operation of its forward pass, and beside every product how long unpacking its weights takes by
itself: whether fewer bits cost more time than fewer bytes save.`,
		Example: `  llmq bench --type q4_k,q8_0 --tokens 1,512 --shape 4096x4096
  llmq bench qwen3-8b-q4_k.gguf --tokens 512 --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				opts.Model = args[0]
				return a.runBenchModel(cmd.Context(), opts)
			}
			return a.runBench(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (o *benchOptions) types() ([]*ggml.Type, error) {
	if len(o.Types) == 0 {
		return ggml.Types, nil
	}
	var types []*ggml.Type
	for _, name := range o.Types {
		t, err := ggml.ByName(name)
		if err != nil {
			return nil, usagef("--type: %w", err)
		}
		types = append(types, t)
	}
	return types, nil
}

func (o *benchOptions) shapes() ([]bench.Shape, error) {
	if len(o.Shapes) == 0 {
		return bench.Shapes, nil
	}
	const maxSide, step = 1 << 17, 256 // the largest block
	var shapes []bench.Shape
	for _, text := range o.Shapes {
		var s bench.Shape
		if n, err := fmt.Sscanf(text, "%dx%d", &s.In, &s.Out); err != nil || n != 2 || s.In < step || s.In%step != 0 ||
			s.Out < 1 || max(s.In, s.Out) > maxSide {
			return nil, usagef("--shape %q: want INxOUT, IN a multiple of %d, both at most %d", text, step, maxSide)
		}
		shapes = append(shapes, s)
	}
	return shapes, nil
}

func (o *benchOptions) tokens(def []int) ([]int, error) {
	const maxTokens = 1 << 16
	for _, n := range o.Tokens {
		if n < 1 || n > maxTokens {
			return nil, usagef("--tokens %d: need 1 to %d", n, maxTokens)
		}
	}
	if len(o.Tokens) == 0 {
		return def, nil
	}
	return o.Tokens, nil
}

func (a *app) runBench(ctx context.Context, opts benchOptions) error {
	types, err := opts.types()
	if err != nil {
		return err
	}
	shapes, err := opts.shapes()
	if err != nil {
		return err
	}
	tokens, err := opts.tokens(bench.Tokens)
	if err != nil {
		return err
	}
	const most = 1 << 30 // of a matrix, 4 GiB
	for _, s := range shapes {
		for _, n := range tokens {
			if max(s.In*s.Out, n*s.In, n*s.Out) > most {
				return usagef("--shape %dx%d with --tokens %d: more than %d values in a matrix", s.In, s.Out, n, most)
			}
		}
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	m := bench.Measure()
	var results []bench.Result
	show := func(r bench.Result) {
		results = append(results, r)
		if opts.JSON {
			return
		}
		line := fmt.Sprintf("%-15s %-7s %-12s", r.Kernel, r.Type, r.Shape)
		if r.Tokens > 0 {
			line += fmt.Sprintf(" %5d tokens", r.Tokens)
		} else {
			line += "             "
		}
		line += fmt.Sprintf(" %9.1f %-9s", r.Rate, r.Unit)
		if r.Bound != "" {
			line += fmt.Sprintf(" %4.0f%% of %s", 100*r.Share, r.Bound)
		}
		fmt.Fprintln(a.stdout, line)
	}
	if !opts.JSON {
		fmt.Fprintf(a.stdout, "tier %s, %d threads\n", m.Tier, m.Threads)
		for _, p := range m.Peaks {
			fmt.Fprintf(a.stdout, "%-28s %2d threads %9.1f %s\n", p.Name, p.Threads, p.Rate, p.Unit)
		}
	}
	for _, s := range shapes {
		for _, n := range tokens {
			for _, t := range types {
				show(m.MatMul(ctx, t, s, n, opts.Precision.p))
				if t.Levels != nil {
					show(m.MatMulQ8(ctx, t, s, n))
				}
				if err := ctx.Err(); err != nil {
					return err
				}
			}
		}
	}
	for _, t := range types {
		show(m.Unpack(ctx, t, shapes[0]))
		show(m.Encode(ctx, t, shapes[0]))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	in := shapes[min(1, len(shapes)-1)].In
	show(m.Syrk(ctx, in, 8192, kernels.F32))
	if kernels.Auto.Rounds() {
		show(m.Syrk(ctx, in, 8192, kernels.Auto))
	}
	for _, refine := range []int{0, 4} {
		r, err := m.GPTQ(ctx, ggml.Q4_K, bench.Shape{In: in, Out: in}, refine)
		if err != nil {
			return err
		}
		show(r)
	}
	if opts.JSON {
		return a.printJSON(struct {
			Machine *bench.Machine `json:"machine"`
			Results []bench.Result `json:"results"`
		}{m, results})
	}
	return nil
}

func (a *app) runBenchModel(ctx context.Context, opts benchOptions) error {
	if len(opts.Types) > 0 || len(opts.Shapes) > 0 {
		return usagef("--type and --shape are those of MODEL")
	}
	tokens, err := opts.tokens([]int{512})
	if err != nil {
		return err
	}
	if len(tokens) != 1 {
		return usagef("--tokens: one number for a model")
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	src, err := a.openSource(ctx, opts.Model, hf.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	m, err := arch.Open(src)
	if err != nil {
		return err
	}
	m.Precision = opts.Precision.p
	sequence := make([]int32, tokens[0])
	for i := range sequence {
		sequence[i] = int32(i % m.Vocab)
	}
	var ops []bench.Operation
	var total, unpack float64
	err = bench.Model(ctx, m, sequence, func(op bench.Operation) {
		ops = append(ops, op)
		total += op.Seconds
		unpack += op.Unpack
		if opts.JSON {
			return
		}
		name := op.Name
		if op.Layer >= 0 && op.Type == "" {
			name = ggml.LayerName(op.Layer) + " " + name
		}
		line := fmt.Sprintf("%-26s %-7s %9.3f ms", name, op.Type, 1e3*op.Seconds)
		if op.GFLOPs > 0 {
			line += fmt.Sprintf(" %8.1f GFLOP/s, unpacking alone %.3f ms (%.0f%%)", op.GFLOPs, 1e3*op.Unpack,
				100*op.Unpack/op.Seconds)
		}
		fmt.Fprintln(a.stdout, line)
	})
	if err != nil {
		return err
	}
	rate := float64(len(sequence)) / total
	if opts.JSON {
		return a.printJSON(struct {
			Tier       string            `json:"tier"`
			Tokens     int               `json:"tokens"`
			Seconds    float64           `json:"seconds"`
			Rate       float64           `json:"tokens_per_second"`
			Operations []bench.Operation `json:"operations"`
		}{kernels.CurrentTier().String(), len(sequence), total, rate, ops})
	}
	fmt.Fprintf(a.stdout, "%d tokens in %.1f ms, %.0f tokens/s; unpacking alone %.0f%%\n", len(sequence), 1e3*total, rate,
		100*unpack/total)
	return nil
}
