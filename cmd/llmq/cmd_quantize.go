package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/hub"
	"github.com/llmq/llmq/imatrix"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/store"
)

type quantizeOptions struct {
	outputOptions
	folderOptions
	calibOptions
	Recipe         string
	PrintRecipe    bool
	Method         methodValue
	MaxIncrease    shareValue
	Smooth         smoothValue
	BiasCorrection bool
	Bits           float64
	Type           typeValue
	Damping        float64
	ActOrder       bool
	Refine         int
	OutputHessian  outputHessianValue
	Memory         byteSize
	Fallback       float64
	MaxSize        byteSize
	MaxBPW         float64
	Work           string
	Machines       int
	Link           linkValue
	Imatrix        string
	engineOptions
}

const defaultBits = 4

func (o *quantizeOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Recipe, "recipe", "", "take options that are not given from `FILE`, YAML whose keys are flags, as --print-recipe prints it; or auto, which is --method auto: choose by measuring, validate the file, give linears q8_0 until --max-ppl-increase is met")
	f.BoolVar(&o.PrintRecipe, "print-recipe", false, "print the options in force as a recipe, and do nothing else")
	o.Method.m = pipeline.GPTQ
	f.Var(&o.Method, "method", "rtn (round to nearest), gptq, awq, awq+gptq, auto (for each group the best of gptq, also behind SmoothQuant, awq+gptq and awq, measured), or int8 (q8_0 with calibrated scales for eight-bit activations)")
	f.Var(&o.Smooth, "smooth", "SmoothQuant before the method, with this `ALPHA` from 0 to 1, or auto for the best of each group, or off")
	f.Var(&o.MaxIncrease, "max-ppl-increase", "most that perplexity on held-out calibration text may rise, standard error included, such as 1%; past it nothing is written and the exit code is 3")
	f.BoolVar(&o.BiasCorrection, "bias-correction", false, "add to biases what the outputs of quantized linears lose in the mean; adds biases where readers load them")
	f.Float64Var(&o.Bits, "bits", 0, "2, 3, 4, 5, 6 or 8 for iq2_s, q3_k, q4_k, q5_k, q6_k, q8_0, or about the bits per weight of another type: 1.56, 1.75, 2.06, 2.31, 2.5, 2.63, 3.06, 3.44, 4.25, ... (default 4)")
	f.Var(&o.Type, "type", "block type of the linears, by name")
	o.folderOptions.AddFlags(cmd)
	f.Float64Var(&o.Damping, "damping", gptq.DefaultDamping, "what GPTQ adds to the Hessian's diagonal, as a share of its mean")
	f.BoolVar(&o.ActOrder, "act-order", true, "GPTQ takes the columns with the largest Hessian diagonal first")
	f.IntVar(&o.Refine, "refine", gptq.DefaultRefine, "passes of coordinate descent after GPTQ")
	o.OutputHessian.o = pipeline.OutputHessianAuto
	f.Var(&o.OutputHessian, "output-hessian", "GPTQ rounds rows with regard to each other, by what errors of the outputs do to the predictions: on, off, or auto, where held-out calibration text says that it pays")
	o.Memory = quantizeMemory
	f.Var(&o.Memory, "memory", memoryUsage)
	o.calibOptions.AddFlags(cmd)
	f.Float64Var(&o.Fallback, "int8-fallback", 0, "redo linears whose relative output error passes `T` as q8_0, their outlier features recorded; starts over for it")
	f.Var(&o.MaxSize, "max-size", "the file's largest `SIZE`, such as 4.2GiB: types are assigned to tensors so that the KL divergence is least; with --int8-fallback or --recipe auto, bounds these")
	f.Float64Var(&o.MaxBPW, "max-bpw", 0, "the most `BITS` per weight of the whole file, in the place of --max-size")
	f.StringVar(&o.Imatrix, "imatrix", "", "llama.cpp's importance matrix `FILE` in the place of calibration text, for --method rtn: scales are searched by it")
	f.StringVar(&o.Work, "work", "", workUsage)
	f.IntVar(&o.Machines, "machines", 1, "with --dry-run: how long the run will take on `N` machines like this one, and what goes between them")
	o.Link = defaultLink
	f.Var(&o.Link, "link", "with --machines: how fast each is connected to the store of all, such as 10Gbit")
	o.engineOptions.AddFlags(cmd)
	o.outputOptions.AddFlags(cmd)
}

func (a *app) quantizeCommand() *cobra.Command {
	var opts quantizeOptions
	cmd := &cobra.Command{
		Use:   "quantize CHECKPOINT -o FILE --calib FILE",
		Short: "Write a checkpoint as quantized GGUF",
		Long: `Quantizes the linears of CHECKPOINT, a folder with config.json, tokenizer and safetensors or an F32, F16 or BF16 GGUF
file (the first part, if it is split; with --allow-requantize a quantized one), one layer at a time, and writes a GGUF
file. Every linear is calibrated on inputs that come from everything quantized before it. Embeddings and the output head
are F16 unless told otherwise; norms and biases stay F32.

CHECKPOINT may be hf:ORG/NAME[@REVISION] of the Hugging Face hub, which is fetched first; with --low-disk its weights come
as they are needed, and go. With --work FOLDER a run that was interrupted goes on where it was, and with --listen
HOST:PORT besides other machines take part in it: see llmq worker.

With --max-size or --max-bpw every tensor of these, embeddings and head too, gets the type that pays there: what types
do to each, and each to the predictions, is measured first, and the best choice within the budget is taken.
--tensor-type, --embedding-type and --output-type fix single ones.

With --format compressed-tensors or gptq the output is a checkpoint folder for servers such as vLLM, with the same methods behind
it: the linears of the layers in 4 or 8 bits, all else as the checkpoint has it.`,
		Example: `  llmq quantize Qwen3-8B -o qwen3-8b-q4_k.gguf --method gptq --bits 4 --calib wiki.train.txt
  llmq quantize Qwen3-8B -o good.gguf --recipe auto --bits 4 --max-ppl-increase 1% --calib wiki.train.txt
  llmq quantize Qwen3-8B -o small.gguf --type iq4_xs --calib a.txt --calib b.jsonl --tensor-type 'ffn_down=q5_k'
  llmq quantize Qwen3-8B -o fits.gguf --max-size 4.2GiB --calib wiki.train.txt
  llmq quantize Qwen3-8B -o Qwen3-8B-W4A16 --format compressed-tensors --bits 4 --group-size 128 --calib wiki.train.txt
  llmq quantize Qwen3-8B -o plain.gguf --method rtn --bits 8 --dry-run
  llmq quantize hf:Qwen/Qwen3-8B -o low.gguf --low-disk --calib wiki.train.txt --work /scratch/qwen3-8b
  llmq quantize --method awq --type q4_0 --smooth auto --print-recipe > awq.yaml
  llmq quantize Qwen3-8B -o awq.gguf --recipe awq.yaml --calib wiki.train.txt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if opts.PrintRecipe && len(args) == 0 {
				return nil // a recipe is not about one checkpoint
			}
			return exactArgs("CHECKPOINT")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			// Before the recipe: there 0 stands for none, as --print-recipe used to write it.
			if err := refuseZero(cmd.Flags(), "bits", "max-size", "max-bpw", "int8-fallback"); err != nil {
				return err
			}
			var ofGPTQ []string // a recipe that was printed has them for any method
			for _, name := range []string{"act-order", "damping", "refine"} {
				if cmd.Flags().Changed(name) {
					ofGPTQ = append(ofGPTQ, "--"+name)
				}
			}
			switch opts.Recipe {
			case "":
			case autoRecipe:
				if cmd.Flags().Changed("method") && !opts.Method.m.Needs().Decides {
					return usagef("--recipe %s chooses the methods: give no --method", autoRecipe)
				}
				opts.Method.m = pipeline.Auto
			default:
				if err := loadRecipe(opts.Recipe, cmd.Flags()); err != nil {
					return err
				}
			}
			recipe, err := opts.recipe()
			if err != nil {
				return err
			}
			if len(ofGPTQ) > 0 && !pipeline.UsesGPTQ(recipe.Method) {
				a.warn("%s: no effect, as GPTQ has no part in --method %s", strings.Join(ofGPTQ, ", "), recipe.Method.Name())
			}
			if opts.PrintRecipe {
				return a.printRecipe(&opts, recipe)
			}
			opts.Checkpoint = args[0]
			if err := opts.describe(&opts, recipe); err != nil {
				return err
			}
			return a.runQuantize(cmd.Context(), opts, recipe)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runQuantize(ctx context.Context, opts quantizeOptions, recipe pipeline.Recipe) (rerr error) {
	opts.besides = append(opts.reads(), reading{opts.Recipe, "the recipe"}, reading{opts.Imatrix, "the importance matrix"})
	opts.measures = opts.assigns()
	if err := opts.checkLowDisk(); err != nil {
		return err
	}
	if opts.LowDisk && store.IsBucket(opts.Work) {
		return usagef("--low-disk keeps weights beside the work folder, which %s cannot hold: give --work FOLDER", opts.Work)
	}
	if opts.LowDisk && recipe.Method.Needs().Outputs && opts.OutputHessian.o == pipeline.OutputHessianAuto {
		a.warn("--low-disk: as with --output-hessian off, which would take a pass of its own through the weights")
	}
	if opts.Work != "" {
		opts.lazyIn = filepath.Clean(opts.Work) + ".checkpoint"
	}
	if opts.folder() {
		opts.form = opts.container
	}
	_, calibrated := recipe.Calibrated()
	calibrated = calibrated || len(opts.Calib) > 0
	recipe.KeepCodes = !calibrated
	src, plan, err := opts.open(ctx, a, recipe)
	var finished *store.Overview
	if err != nil {
		if finished, err = opts.finished(ctx, err); err != nil {
			return err
		}
		there := opts // what its run has written there is not in its way
		there.Force = true
		src, plan, err = there.open(ctx, a, recipe)
	}
	if err != nil {
		return err
	}
	defer src.Close()
	opts.fit(src)
	var set *calib.Set
	var heldOut []int32
	if calibrated && !(opts.DryRun && len(opts.Calib) == 0) {
		if set, err = opts.sample(a, src, opts.heldOutTokens()); err != nil {
			return err
		}
		if opts.validates() {
			if heldOut, err = opts.holdOut(a, set); err != nil {
				return err
			}
		}
		md := append(set.Metadata(), pipeline.ShardsMetadata()...)
		if heldOut != nil {
			md = append(md, pipeline.ValidationMetadata()...)
		}
		if plan, err = plan.With(md); err != nil {
			return err
		}
	}
	var matrix *imatrix.Matrix
	if opts.Imatrix != "" {
		if matrix, plan, err = a.readImatrix(opts.Imatrix, plan); err != nil {
			return err
		}
	}
	done := false
	progress := a.progress()
	defer progress.Done()
	popt := pipeline.Options{
		Calib:     set,
		Imatrix:   matrix,
		Memory:    int64(opts.Memory),
		Fallback:  pipeline.Fallback{MaxError: opts.Fallback, MaxBytes: int64(opts.MaxSize), MaxBPW: opts.MaxBPW},
		Validate:  pipeline.Validate{Tokens: heldOut, MaxIncrease: float64(opts.MaxIncrease)},
		Overwrite: opts.Force,
		Progress:  progress,
	}
	var work store.Folder
	if opts.Work != "" && !opts.DryRun {
		if work, err = opts.openWork(ctx, a, src, plan, popt); err != nil {
			return err
		}
		defer work.Close()
		popt.Work = work
		defer func() {
			progress.Done()
			a.printWork(work, done, src)
		}()
	}
	removeLazy := func() error {
		if s, ok := src.(*lazySource); ok && opts.lazyIn != "" {
			return s.lazy.Remove()
		}
		return nil
	}
	if finished != nil {
		if err := clearFinished(work, finished); err != nil {
			return err
		}
		done = true
		fmt.Fprintf(a.stderr, "llmq: %s was whole already: its run was killed as it cleared %s, which is done now\n", opts.Output, opts.Work)
		return removeLazy()
	}
	if opts.many() && !opts.DryRun {
		eng, err := opts.start(ctx, a, work, plan)
		if err != nil {
			return err
		}
		defer func() { eng.end(ctx, rerr) }()
		popt.Engine = eng
	}
	if opts.assigns() {
		if plan, err = opts.assign(ctx, src, plan, popt); err != nil {
			return err
		}
		progress.Done()
	}
	if opts.DryRun {
		var m *model.Model
		if calibrated {
			if m, err = arch.Open(src); err != nil {
				return err
			}
		}
		cost, err := opts.cost(ctx, plan, m, set)
		if err != nil {
			return err
		}
		needs := plan.Needs(m, opts.atMost(), opts.SeqLen, int64(opts.Memory))
		peak, without := plan.PassingDisk(src, m, opts.atMost(), opts.SeqLen, opts.Work != ""), plan.Size()
		if opts.Work != "" {
			without += needs.Work
		}
		needs.Fetched = max(0, peak-without)
		if needs.Work > 0 {
			needs.Work += opts.besideWork(plan, m)
		}
		return a.printPlan(&opts.outputOptions, src, plan, needs, cost)
	}
	if set != nil {
		m, err := arch.Open(src)
		if err != nil {
			return err
		}
		needs := plan.Needs(m, set.Tokens(), set.SeqLen, int64(opts.Memory))
		if popt.Work != nil {
			bytes := needs.Work + opts.besideWork(plan, m)
			if popt.Engine != nil {
				bytes += plan.DividedBytes(m, set)
			}
			if opts.growsThere() {
				bytes += plan.Size()
			}
			fmt.Fprintf(a.stderr, "llmq: %s will hold at most %s\n", opts.Work, formatBytes(bytes))
			if s, ok := src.(*lazySource); ok {
				peak := plan.PassingDisk(src, m, set.Tokens(), set.SeqLen, true)
				if err := work.Room(peak - s.lazy.Taken()); err != nil {
					return fmt.Errorf("%w (with the weights that are fetched)", err)
				}
			}
		}
		if popt.Engine == nil { // how many machines there will be nobody knows
			popt.Speeds = plan.SpeedsOfLongRun(ctx, m, set.Tokens(), set.SeqLen, filepath.Dir(opts.Output))
		}
		defer keepLow(needs.Memory)()
	}
	rep, err := pipeline.Run(ctx, src, plan, opts.Output, popt)
	if _, damaged := errors.AsType[*hub.DamagedError](err); damaged && work != nil {
		done = true
		// What was made of it goes first, for good: a whole download must not find that.
		if err2 := errors.Join(clearWork(work), work.Note(&store.Standing{Output: opts.Output})); err2 != nil {
			return errors.Join(err, err2)
		}
		return errors.Join(fmt.Errorf("%w; nothing is kept of it: the same command starts over", err), removeLazy())
	}
	limit, over := errors.AsType[*pipeline.LimitError](err)
	if over {
		rep = limit.Report
	} else if err != nil {
		return err
	}
	done = true
	progress.Done()
	if err := removeLazy(); err != nil {
		return err
	}
	if v := rep.Validation; err == nil && v != nil && !(v.Original.Finite() && v.Quantized.Finite()) {
		err = errInfinite
	}
	return errors.Join(opts.writeModelfile(rep), a.printReport(&opts.outputOptions, rep), err)
}

// besideWork is how much more is on the disk, because of --work, than the output and what Needs.Work tells: in a bucket no output is made; in a
// folder one is, which is there twice for a moment if the output goes to another disk.
func (o *quantizeOptions) besideWork(plan *pipeline.Plan, m *model.Model) int64 {
	switch {
	case o.Work == "" || plan.Recipe.Container != nil:
		return 0
	case store.IsBucket(o.Work):
		return plan.LayerBytes(m)
	}
	folder := filepath.Clean(o.Work)
	for parent := filepath.Dir(folder); parent != folder; folder, parent = parent, filepath.Dir(parent) {
		if _, err := os.Stat(folder); err == nil {
			break
		}
	}
	if atomicfile.SameDisk(folder, filepath.Dir(o.Output)) {
		return 0
	}
	return plan.Size()
}

// growsThere says whether the output is made in the work folder and renamed from there.
func (o *quantizeOptions) growsThere() bool {
	return !store.IsBucket(o.Work) && !o.folder() && atomicfile.SameDisk(o.Work, filepath.Dir(o.Output))
}

// readImatrix reads an importance matrix, and notes it in the plan.
func (a *app) readImatrix(path string, plan *pipeline.Plan) (*imatrix.Matrix, *pipeline.Plan, error) {
	m, err := imatrix.Read(path)
	if err != nil {
		return nil, nil, err
	}
	plan, lacking, err := plan.WithImatrix(m, path)
	if err == nil && lacking > 0 {
		a.warn("%s has no sums for %d of the tensors that are quantized: their scales are searched by the weights alone", path, lacking)
	}
	return m, plan, err
}

// recipe checks the options that need no file, and makes a recipe of them.
func (o *quantizeOptions) recipe() (pipeline.Recipe, error) {
	if err := o.checkAuto(); err != nil {
		return pipeline.Recipe{}, err
	}
	method := pipeline.WithGPTQ(o.Method.m, gptq.Options{
		Damping: o.Damping, NoActOrder: !o.ActOrder, Refine: o.Refine, NoRefine: o.Refine == 0,
	})
	needs := method.Needs()
	if o.OutputHessian.o == pipeline.OutputHessianOn && !needs.Outputs {
		return pipeline.Recipe{}, usagef("--output-hessian on is for methods with GPTQ, not %s", method.Name())
	}
	r := pipeline.Recipe{Method: method, Type: o.Type.t, Smooth: o.Smooth.s, BiasCorrection: o.BiasCorrection}
	r.OutputHessian = o.OutputHessian.o
	if o.LowDisk {
		if err := o.checkPasses(); err != nil {
			return r, err
		}
		r.OutputHessian = pipeline.OutputHessianOff // --output-hessian auto
	}
	r.Rules, r.Embedding, r.Output, r.NoFallback = o.Rules.rules, o.EmbeddingType.t, o.OutputType.t, o.NoFallback
	if why, ok := r.Calibrated(); ok && o.lacksText() {
		if needs.Stats {
			return r, usagef("%s needs calibration text: give some with --calib FILE, or use --method rtn", why)
		}
		return r, usagef("%s needs calibration text: give some with --calib FILE", why)
	}
	if err := o.check(); err != nil {
		return r, err
	}
	if err := o.checkFolder(); err != nil {
		return r, err
	}
	switch {
	case o.Imatrix != "" && (needs.Stats || o.Smooth.s != nil || o.BiasCorrection):
		return r, usagef("--imatrix tells the inputs' mean squares, which --method rtn alone can do with: give calibration text with --calib FILE")
	case o.Imatrix != "" && (len(o.Calib) > 0 || o.assigns()):
		return r, usagef("--imatrix stands in the place of calibration text, and serves no budget: give --calib FILE without it")
	case !(o.Damping > 0 && o.Damping <= 1):
		return r, usagef("--damping %g: need more than 0 and at most 1", o.Damping)
	case !(o.Fallback >= 0) || math.IsInf(o.Fallback, 0):
		return r, usagef("--int8-fallback %g: need more than 0, and finite", o.Fallback)
	case o.Fallback > 0 && o.lacksText():
		return r, usagef("--int8-fallback goes by output errors: give calibration text with --calib FILE")
	case o.Machines < 1:
		return r, usagef("--machines %d: need 1 or more", o.Machines)
	case o.cmd.Flags().Changed("machines") && !o.DryRun:
		return r, usagef("--machines is for --dry-run")
	case o.cmd.Flags().Changed("link") && o.Machines < 2:
		return r, usagef("--link is for --machines: one machine has nothing to send")
	case o.Refine < 0:
		return r, usagef("--refine %d: need 0 or more", o.Refine)
	case o.Work != "" && o.lacksText():
		return r, usagef("--work keeps what is done with calibration text: give some with --calib FILE; without, a run is done again at the disk's speed")
	}
	if err := o.checkBudget(); err != nil {
		return r, err
	}
	if err := o.engineOptions.checkEngine(o.Work); err != nil {
		return r, err
	}
	if o.folder() {
		scheme, err := o.scheme()
		r.Type = scheme.Nominal()
		return r, err
	}
	if r.Type == nil {
		bits := o.Bits
		switch {
		case bits != 0:
		case needs.Int8Inputs:
			bits = 8
		default:
			bits = defaultBits
		}
		t, err := pipeline.TypeForBits(bits)
		if err != nil {
			return r, usagef("--bits %w", err)
		}
		r.Type = t
	} else if o.Bits != 0 {
		stored := 8 * float64(r.Type.BlockBytes) / float64(r.Type.BlockLen)
		if t, err := pipeline.TypeForBits(o.Bits); t != r.Type && o.Bits != float64(codeBits(r.Type)) && math.Abs(o.Bits-stored) > 0.01 {
			if err != nil {
				return r, usagef("--bits %w", err)
			}
			return r, usagef("--bits %g contradicts --type %s, which has %d", o.Bits, r.Type.Name, codeBits(r.Type))
		}
	}
	if needs.Int8Inputs && r.Type != ggml.Q8_0 {
		return r, usagef("--method %s has q8_0 weights, not %s; --tensor-type changes single tensors", method.Name(), r.Type.Name)
	}
	return r, nil
}

// checkPasses refuses with --low-disk what takes more than one pass through the original's weights.
func (o *quantizeOptions) checkPasses() error {
	const why = "--low-disk fetches weights once: %s"
	switch {
	case o.validates():
		return usagef(why, "--max-ppl-increase and the method auto compare the file with the original when that has gone")
	case o.assigns():
		return usagef(why, "--max-size and --max-bpw measure all of them first")
	case o.Fallback > 0:
		return usagef(why, "--int8-fallback starts over")
	case o.OutputHessian.o == pipeline.OutputHessianOn:
		return usagef(why, "--output-hessian on takes a pass of its own before the first layer")
	}
	return nil
}

// lacksText says whether calibration text is missing from what the options are for.
func (o *quantizeOptions) lacksText() bool { return len(o.Calib) == 0 && !o.DryRun && !o.PrintRecipe }

// outputHessianValue is a flag that says where Hessians of outputs are used.
type outputHessianValue struct{ o pipeline.OutputHessian }

func (v *outputHessianValue) Type() string   { return "WHEN" }
func (v *outputHessianValue) String() string { return v.o.String() }

func (v *outputHessianValue) Set(s string) (err error) {
	v.o, err = pipeline.ParseOutputHessian(s)
	return err
}

// smoothValue is a flag that takes SmoothQuant's α, or auto.
type smoothValue struct{ s *smoothquant.Smoothing }

func (v *smoothValue) Type() string { return "ALPHA" }

func (v *smoothValue) String() string {
	switch {
	case v.s == nil:
		return "off"
	case v.s.Auto:
		return "auto"
	}
	return strconv.FormatFloat(v.s.Alpha, 'g', -1, 64)
}

func (v *smoothValue) Set(s string) error {
	switch s {
	case "auto":
		v.s = &smoothquant.Smoothing{Auto: true}
		return nil
	case "off":
		v.s = nil
		return nil
	}
	alpha, err := strconv.ParseFloat(s, 64)
	if err != nil || !(alpha >= 0 && alpha <= 1) {
		return fmt.Errorf("alpha is %q; want a number from 0 to 1, auto or off", s)
	}
	v.s = &smoothquant.Smoothing{Alpha: alpha}
	return nil
}

// codeBits is the size of a code, without the scales' share.
func codeBits(t *ggml.Type) int {
	if t.Grid == nil {
		return 8 * t.BlockBytes / t.BlockLen
	}
	return t.Grid.Shape().Bits
}
