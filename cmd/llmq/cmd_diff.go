package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/compare"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
)

type diffOptions struct {
	A, B    string
	JSON    bool
	Threads int
}

func (o *diffOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.JSON, "json", false, "print one JSON object, with values in full")
	f.IntVar(&o.Threads, "threads", 0, "use `N` processors (0: all)")
}

func (a *app) diffCommand() *cobra.Command {
	var opts diffOptions
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Say what differs between two models",
		Long: `Compares two models, GGUF files or checkpoint folders as convert would write them: metadata, types, shapes and bytes of tensors,
and of each tensor that differs the relative error ‖A−B‖²/‖A‖² and the largest difference of two weights.`,
		Example: `  llmq diff qwen3-8b-f16.gguf qwen3-8b-q4_k.gguf
  llmq diff Qwen3-8B their-conversion.gguf --json`,
		Args: exactArgs("A", "B"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.A, opts.B = args[0], args[1]
			return a.runDiff(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runDiff(ctx context.Context, opts diffOptions) error {
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	srcA, err := a.openSource(opts.A, hf.Options{})
	if err != nil {
		return err
	}
	defer srcA.Close()
	srcB, err := a.openSource(opts.B, hf.Options{})
	if err != nil {
		return err
	}
	defer srcB.Close()
	progress := a.progress()
	defer progress.Done()
	d, err := compare.Models(ctx, srcA, srcB, progress)
	if err = unchanged(err, srcA, srcB); err != nil {
		return err
	}
	progress.Done()
	if opts.JSON {
		return a.diffJSON(opts, d)
	}
	if d.None() {
		_, err := fmt.Fprintf(a.stdout, "the same: all metadata and %d tensors\n", d.Same)
		return err
	}
	t := newTable(a.stdout)
	for _, k := range d.Metadata {
		switch {
		case k.A == nil:
			t.row("+ "+plain(k.Key), "%s", abbreviate(k.B))
		case k.B == nil:
			t.row("- "+plain(k.Key), "%s", abbreviate(k.A))
		case k.At >= 0:
			t.row("  "+plain(k.Key), "%s → %s, from element %d on", abbreviate(k.A), abbreviate(k.B), k.At)
		default:
			t.row("  "+plain(k.Key), "%s → %s", abbreviate(k.A), abbreviate(k.B))
		}
	}
	for _, x := range d.Tensors {
		switch {
		case x.A == nil:
			t.row("+ "+plain(x.Name), "%s %s", x.B.Type.Name, shapeString(x.B.Shape))
		case x.B == nil:
			t.row("- "+plain(x.Name), "%s %s", x.A.Type.Name, shapeString(x.A.Shape))
		default:
			t.row("  "+plain(x.Name), "%s", tensorDifference(&x))
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "\n%d keys and %d tensors differ, %d tensors are the same", len(d.Metadata), len(d.Tensors), d.Same)
	if d.RelativeError != nil {
		fmt.Fprintf(a.stdout, "; relative error of all weights %.3g", *d.RelativeError)
	}
	_, err = fmt.Fprintln(a.stdout)
	return err
}

// tensorDifference says how a tensor that both have differs.
func tensorDifference(x *compare.Tensor) string {
	s := x.A.Type.Name
	if x.A.Type != x.B.Type {
		s += " → " + x.B.Type.Name
	}
	if shapeA, shapeB := shapeString(x.A.Shape), shapeString(x.B.Shape); shapeA != shapeB {
		return s + "  " + shapeA + " → " + shapeB
	}
	s += "  " + shapeString(x.A.Shape)
	if n := x.B.Bytes() - x.A.Bytes(); n != 0 {
		s += fmt.Sprintf("  %+d bytes", n)
	}
	switch {
	case x.AbsMax == 0 && x.NotFinite == 0:
		s += "  the same values"
	case x.RelativeError != nil:
		s += fmt.Sprintf("  relative error %.3g, at most %.3g", *x.RelativeError, x.AbsMax)
	case x.AbsMax > 0:
		s += fmt.Sprintf("  at most %.3g", x.AbsMax)
	}
	if x.NotFinite > 0 {
		s += fmt.Sprintf("  %d weights are not finite in one of them", x.NotFinite)
	}
	return s
}

func (a *app) diffJSON(opts diffOptions, d *compare.Difference) error {
	type key struct {
		compare.Key
		A any `json:"a"`
		B any `json:"b"`
	}
	type side struct {
		Type  string `json:"type"`
		Shape []int  `json:"shape"`
		Bytes int64  `json:"bytes"`
	}
	type row struct {
		compare.Tensor
		A *side `json:"a"` // null: it is not there
		B *side `json:"b"`
	}
	describe := func(t *ggml.Info) *side {
		if t == nil {
			return nil
		}
		return &side{t.Type.Name, t.Shape, t.Bytes()}
	}
	keys, rows := []key{}, []row{}
	for _, k := range d.Metadata {
		keys = append(keys, key{k, jsonValue(k.A), jsonValue(k.B)})
	}
	for _, t := range d.Tensors {
		rows = append(rows, row{t, describe(t.A), describe(t.B)})
	}
	return a.printJSON(struct {
		A             string   `json:"a"`
		B             string   `json:"b"`
		Same          int      `json:"same_tensors"`
		RelativeError *float64 `json:"relative_error"`
		Metadata      []key    `json:"metadata"`
		Tensors       []row    `json:"tensors"`
	}{opts.A, opts.B, d.Same, d.RelativeError, keys, rows})
}
