package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/hub"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/pipeline"
)

// outputOptions are what the commands that write a GGUF file share.
type outputOptions struct {
	Checkpoint    string
	Output        string
	Rules         ruleList
	EmbeddingType typeValue
	OutputType    typeValue
	NoFallback    bool
	Requantize    bool
	PartBytes     partSize
	Pre           string
	LoRA          string
	Modelfile     string
	MTP           mtpValue
	Threads       int
	LowDisk       bool
	DryRun        bool
	Force         bool
	JSON          bool

	besides  []reading                                             // the checkpoint
	form     func(src pipeline.Source) (pipeline.Container, error) // nil for a GGUF file
	measures bool                                                  // a dry run reads the weights too
	lazyIn   string                                                // where --low-disk keeps what has come; "" if nowhere
}

func (o *outputOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.Output, "output", "o", "", "`FILE` to write (required)")
	f.Var(&o.Rules, "tensor-type", "give tensors whose GGUF name matches a regular expression a type, as 'ffn_down=q6_k' (repeatable, first match wins)")
	f.Var(&o.EmbeddingType, "embedding-type", "type of token_embd.weight (default f16)")
	f.Var(&o.OutputType, "output-type", "type of output.weight (default f16); a tied embedding stays one tensor")
	f.BoolVar(&o.NoFallback, "no-fallback", false, "fail where a type's block does not divide a tensor's columns, instead of taking another type")
	f.BoolVar(&o.Requantize, "allow-requantize", false, "accept a checkpoint that is quantized already; its rounding errors stay, and new ones come on top")
	f.Var(&o.PartBytes, "split-max-size", "write parts NAME-00001-of-00003.gguf and so on with at most `SIZE` of tensors in each, such as 50G, as llama.cpp does; readers open the first")
	f.StringVar(&o.Pre, "pre", "", "`NAME` of the pre-tokenizer, for a tokenizer.json whose patterns are not known")
	f.StringVar(&o.LoRA, "lora", "", "`FOLDER` of a LoRA adapter of the peft library to merge into the weights")
	f.StringVar(&o.Modelfile, "modelfile", "", "write `FILE` too, a Modelfile of the output, which ollama create takes")
	f.Var(&o.MTP, "mtp", "keep or drop layers that predict further tokens (multi-token prediction), of the families for which llama.cpp keeps them; nothing calibrates them, so they become q8_0; auto keeps those among the model's layers, which any llama.cpp loads, and drops those apart, as Qwen3.5's")
	f.IntVar(&o.Threads, "threads", 0, "use `N` processors (0: all); the output does not depend on it")
	f.BoolVar(&o.LowDisk, "low-disk", false, "with hf:ORG/NAME, fetch weights when they are due, and drop them when what is made of them is written (Linux)")
	f.BoolVar(&o.DryRun, "dry-run", false, "print every tensor's type and what the run will need, from headers and the calibration text, with a budget after measuring; quantize measures this machine, a second where its speed is steady and up to ten where not, and says how long it will take; write nothing")
	f.BoolVar(&o.Force, "force", false, "replace FILE if it exists")
	f.BoolVar(&o.JSON, "json", false, "print one JSON object")
}

// existsError says that an output is there; it is fs.ErrExist.
type existsError string

func (e existsError) Error() string        { return string(e) + " exists; --force replaces it" }
func (e existsError) Is(target error) bool { return target == fs.ErrExist }

// open checks the paths, opens the checkpoint and plans the output; the caller closes the source.
func (o *outputOptions) open(ctx context.Context, a *app, r pipeline.Recipe) (pipeline.Source, *pipeline.Plan, error) {
	if o.Output == "" {
		return nil, nil, usagef("no output given: -o FILE")
	}
	if err := setThreads(o.Threads); err != nil {
		return nil, nil, err
	}
	if err := o.checkLowDisk(); err != nil {
		return nil, nil, err
	}
	if !o.DryRun && o.PartBytes == 0 { // the names of parts are known when their number is
		check := a.checkOutput
		if o.form != nil {
			check = a.checkOutputFolder
		}
		if err := check(o.Output, o.Force, o.inputs()...); err != nil {
			return nil, nil, err
		}
	}
	if !o.DryRun {
		if err := o.checkModelfile(a); err != nil {
			return nil, nil, err
		}
	}
	r.Requantize, r.PartBytes = o.Requantize, int64(o.PartBytes)
	r.Rules, r.Embedding, r.Output, r.NoFallback = o.Rules.rules, o.EmbeddingType.t, o.OutputType.t, o.NoFallback
	var err error
	if o.LoRA, err = a.local(ctx, o.LoRA); err != nil { // --work looks at its files
		return nil, nil, err
	}
	src, err := o.openCheckpoint(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	if s, ok := src.(*gguf.Scaled); ok && !o.Requantize { // its weights look like floats
		return nil, nil, errors.Join(fmt.Errorf("%s: has weights of type nvfp4: they are quantized already. Take the original checkpoint, or "+
			"accept with --allow-requantize that its errors stay", s.Name()), src.Close())
	}
	if o.form != nil {
		if r.Container, err = o.form(src); err != nil {
			return nil, nil, errors.Join(err, src.Close())
		}
	}
	plan, err := pipeline.NewPlan(src, r)
	if err == nil && !o.DryRun {
		err = o.checkParts(a, src, plan)
	}
	if err != nil {
		return nil, nil, errors.Join(err, src.Close())
	}
	return src, plan, nil
}

// openCheckpoint opens what is to be written.
func (o *outputOptions) openCheckpoint(ctx context.Context, a *app) (pipeline.Source, error) {
	opt := hf.Options{Pre: o.Pre, LoRA: o.LoRA, MTP: o.MTP.v, Passing: o.LowDisk}
	switch {
	case o.DryRun && !o.measures:
		return a.openHeaders(ctx, o.Checkpoint, opt)
	case o.LowDisk:
		return a.openLazily(ctx, o.Checkpoint, opt, o.lazyIn, filepath.Dir(o.Output), false)
	}
	return a.openSource(ctx, o.Checkpoint, opt)
}

// checkLowDisk says what --low-disk is not for.
func (o *outputOptions) checkLowDisk() error {
	switch {
	case !o.LowDisk:
	case !hub.IsName(o.Checkpoint):
		return usagef("--low-disk is for %sORG/NAME: %s is there already", hub.Scheme, o.Checkpoint)
	case !hub.Lazily:
		return usagef("--low-disk needs files with holes, which llmq makes on Linux only")
	case o.LoRA != "":
		return usagef("--low-disk: an adapter cannot be merged into weights that come and go: give no --lora")
	}
	return nil
}

// inputs lists what the command reads.
func (o *outputOptions) inputs() []reading {
	return append(slices.Clip(o.besides), reading{o.Checkpoint, "the input"}, reading{o.LoRA, "the adapter"})
}

// reading is a file or folder that a command reads. what completes "the output is".
type reading struct{ path, what string }

// checkOutput refuses, before anything is read, an output that cannot become a file, that would replace what the command
// reads, or, without force, any other file. It removes what killed runs have left in the output's folder, and says so.
func (a *app) checkOutput(output string, force bool, reads ...reading) error {
	if output == "-" { // which other programs take for standard output
		return errors.New("-: the output must be a file; ./- is one of that name")
	}
	for _, r := range reads {
		if atomicfile.Same(r.path, output) {
			return fmt.Errorf("%s: the output is %s", output, r.what)
		}
	}
	target, err := atomicfile.Resolve(output)
	if err != nil {
		return err
	}
	if out, ok := a.stdout.(*os.File); ok && sameFile(out, target) {
		return fmt.Errorf("%s: standard output goes to the output file: what is printed would be lost", output)
	}
	if _, err := os.Lstat(target); err == nil {
		for _, r := range reads {
			if isPart(r.path, target) {
				return fmt.Errorf("%s: the output is part of %s", output, r.what)
			}
		}
		if !force {
			return existsError(output)
		}
	}
	for _, l := range atomicfile.Sweep(filepath.Dir(target)) {
		a.warn("removed %s, %s that a killed run has left", l.Path, formatBytes(l.Bytes))
	}
	return nil
}

// sameFile says whether f is the file at path.
func sameFile(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}

// isPart says whether file, which exists and is free of links, lies in folder or is what a link in it leads to. GGUF files
// are part of no checkpoint. Of a folder that cannot be read the command that opens it will speak.
func isPart(folder, file string) bool {
	if strings.EqualFold(filepath.Ext(file), ".gguf") {
		return false
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return false // no folder
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".gguf" && atomicfile.Same(filepath.Join(folder, e.Name()), file) {
			return true
		}
	}
	real, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return false
	}
	real, err1 := filepath.Abs(real)
	file, err2 := filepath.Abs(file)
	rel, err3 := filepath.Rel(real, file)
	return errors.Join(err1, err2, err3) == nil && filepath.IsLocal(rel)
}

// runtimeBytes is what the process holds besides a run's data: the program, its stacks, the tokenizer.
const runtimeBytes = 48 << 20

// printPlan prints what a run would write, what it needs, and, where it is known, how long it takes.
func (a *app) printPlan(o *outputOptions, src pipeline.Source, plan *pipeline.Plan, needs pipeline.Needs, cost *pipeline.Cost) error {
	// The collector comes when there is so much garbage: on average half of it is there.
	memory := needs.Memory + needs.Memory*int64(garbagePercent(needs.Memory))/200 + runtimeBytes + needs.Mapped
	if o.JSON {
		type tensorJSON struct {
			Name     string `json:"name"`
			Type     string `json:"type"`
			Shape    []int  `json:"shape"`
			Bytes    int64  `json:"bytes"`
			Fallback string `json:"fallback"`
		}
		tensors := make([]tensorJSON, len(plan.Tensors))
		for i := range plan.Tensors {
			t := &plan.Tensors[i]
			tensors[i] = tensorJSON{t.Name, t.Type.Name, t.Shape, t.Bytes(), ""}
			if t.Wanted != t.Type {
				tensors[i].Fallback = t.Wanted.Name
			}
		}
		output, parts := plan.Paths(o.Output), []string{}
		if len(output) > 1 {
			parts = output
		}
		return a.printJSON(struct {
			Output        string       `json:"output"` // the first part, of a split file
			Parts         []string     `json:"parts"`
			Bytes         int64        `json:"bytes"`
			BitsPerWeight float64      `json:"bits_per_weight"`
			MemoryBytes   int64        `json:"memory_bytes"`
			DiskBytes     int64        `json:"disk_bytes"`
			WorkBytes     int64        `json:"work_bytes"`       // more with --work, at most
			FetchedBytes  int64        `json:"checkpoint_bytes"` // more at a time with --low-disk, at most
			Tensors       []tensorJSON `json:"tensors"`

			Assignment *pipeline.Assignment `json:"assignment"`
			Cost       *pipeline.Cost       `json:"cost"` // null of convert
		}{output[0], parts, plan.Size(), plan.BitsPerWeight(), memory, needs.Disk, needs.Work, needs.Fetched, tensors, plan.Assignment, cost})
	}
	t := newTable(a.stdout)
	for i := range plan.Tensors {
		p := &plan.Tensors[i]
		t.row(p.Name, "%s\t%s\t%d bytes", p.Type.Name, shapeString(p.Shape), p.Bytes())
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = newTable(a.stdout)
	t.row("file", "%d bytes (%s), %.3f bits per weight", plan.Size(), formatBytes(plan.Size()), plan.BitsPerWeight())
	if parts := plan.File.Parts(); len(parts) > 1 {
		for i, path := range plan.File.Paths(o.Output) {
			t.row(plain(filepath.Base(path)), "%d bytes (%s)", parts[i], formatBytes(parts[i]))
		}
	}
	t.row("memory", "about %s, of which %s are pages of the checkpoint that is being read", formatBytes(memory), formatBytes(needs.Mapped))
	t.row("disk", "%s", formatBytes(needs.Disk))
	if needs.Work > 0 {
		t.row("", "with --work at most %s more", formatBytes(needs.Work))
	}
	if needs.Fetched > 0 {
		t.row("", "at most %s more at a time for weights that have come and not gone", formatBytes(needs.Fetched))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := a.printCost(cost); err != nil {
		return err
	}
	if err := a.printAssignment(plan.Assignment); err != nil {
		return err
	}
	return a.printFallbacks(plan)
}

// printReport prints what a run has done.
func (a *app) printReport(o *outputOptions, rep *pipeline.Report) error {
	if o.JSON {
		return a.printJSON(struct {
			*pipeline.Report
			PeakRSS int64 `json:"peak_rss_bytes"`
		}{rep, peakRSS()})
	}
	var worst *pipeline.TensorReport
	var sum float64
	var n, lossless int
	for i := range rep.Tensors {
		t := &rep.Tensors[i]
		if typ := rep.Plan.Tensors[i].Type; typ.Grid == nil {
			continue
		}
		n++
		sum += t.RelativeError
		if t.Lossless {
			lossless++
		}
		if worst == nil || t.RelativeError > worst.RelativeError {
			worst = t
		}
	}
	t := newTable(a.stdout)
	if rep.Output == "" {
		t.row("output", "none: the limit is not met")
	} else {
		t.row("output", "%s", rep.Output)
	}
	if n := len(rep.Parts); n > 1 {
		t.row("", "and %d parts more, up to %s", n-1, filepath.Base(rep.Parts[n-1]))
	}
	t.row("size", "%d bytes (%s), %.3f bits per weight", rep.Bytes, formatBytes(rep.Bytes), rep.BitsPerWeight)
	if worst != nil {
		t.row("relative error", "mean %.3g over %d quantized tensors, largest %.3g in %s", sum/float64(n), n,
			worst.RelativeError, worst.Name)
	}
	if o := rep.OutputHessian; o != nil {
		t.row("output Hessian", "%s", outputHessians(o))
	}
	if lossless > 0 {
		t.row("lossless", "%d of %d quantized tensors lie on their types' grids and are copied code by code", lossless, n)
	}
	if s := requantized(rep); s != "" {
		t.row("requantized", "%s", s)
	}
	t.row("took", "%.1f s, peak memory %s", rep.Seconds, formatBytes(peakRSS()))
	if err := t.flush(); err != nil {
		return err
	}
	if err := a.printAssignment(rep.Assignment); err != nil {
		return err
	}
	if err := a.printValidation(rep.Validation); err != nil {
		return err
	}
	if err := a.printDecisions(rep); err != nil {
		return err
	}
	if err := a.printFoldings(rep); err != nil {
		return err
	}
	if err := a.printInt8Fallbacks(rep); err != nil {
		return err
	}
	return a.printFallbacks(rep.Plan)
}

// printFoldings says how many groups each transform scaled, and lists those that it did not, and the linears whose biases
// were not corrected.
func (a *app) printFoldings(rep *pipeline.Report) error {
	t := newTable(a.stdout)
	var names []string
	for _, f := range rep.Foldings {
		if len(rep.Decisions) == 0 && !slices.Contains(names, f.Transform) {
			names = append(names, f.Transform)
		}
	}
	for _, name := range names {
		var scaled, all int
		for _, f := range rep.Foldings {
			if f.Transform != name {
				continue
			}
			all++
			if f.Skipped == "" {
				scaled++
			}
		}
		t.row(name, "%d of %d groups scaled", scaled, all)
		for _, f := range rep.Foldings {
			if f.Transform == name && f.Skipped != "" {
				t.row(f.Group, "not scaled: %s", f.Skipped)
			}
		}
	}
	for _, name := range rep.NoBias {
		t.row(name, "bias not corrected: readers of this architecture load none")
	}
	return t.flush()
}

// printInt8Fallbacks lists the linears past --int8-fallback, why they are, and what it cost.
func (a *app) printInt8Fallbacks(rep *pipeline.Report) error {
	t := newTable(a.stdout)
	for _, f := range rep.Int8Fallbacks {
		became, cost := "INT8", fmt.Sprintf("%+d bytes", f.Bytes)
		if !f.Done {
			became, cost = "left", cost+" would pass the budget"
		}
		if f.KL > 0 {
			cost += fmt.Sprintf("\tsaves %.2g of KL divergence", f.KL)
		}
		t.row(f.Name, "%s\t%s error %.3g\t%d outlier features\t%s", became, f.From, f.RelativeError, f.Outliers, cost)
	}
	return t.flush()
}

// printFallbacks lists the tensors that got another type than they were to have.
func (a *app) printFallbacks(plan *pipeline.Plan) error {
	t := newTable(a.stdout)
	for i := range plan.Tensors {
		p := &plan.Tensors[i]
		if p.Wanted == p.Type {
			continue
		}
		// Were the columns a whole number of blocks.
		wanted := int64(p.Elements()) * int64(p.Wanted.BlockBytes) / int64(p.Wanted.BlockLen)
		t.row(p.Name, "%s instead of %s: its blocks of %d do not divide %d columns; %+d bytes", p.Type.Name, p.Wanted.Name,
			p.Wanted.BlockLen, p.Cols(), p.Bytes()-wanted)
	}
	return t.flush()
}

// typeValue is a flag that names a type of formats/ggml; nil where it is not given.
type typeValue struct{ t *ggml.Type }

func (v *typeValue) Type() string { return "TYPE" }

func (v *typeValue) String() string {
	if v.t == nil {
		return ""
	}
	return v.t.Name
}

func (v *typeValue) Set(s string) error {
	t, err := typeNamed(s)
	v.t = t
	return err
}

// mtpValue is a flag that says which layers that predict further tokens are kept.
type mtpValue struct{ v arch.MTP }

var mtpNames = []string{arch.AutoMTP: "auto", arch.KeepMTP: "keep", arch.DropMTP: "drop"}

func (v *mtpValue) Type() string   { return "keep|drop|auto" }
func (v *mtpValue) String() string { return mtpNames[v.v] }

func (v *mtpValue) Set(s string) error {
	i := slices.Index(mtpNames, s)
	if i < 0 {
		return errors.New("want keep, drop or auto")
	}
	v.v = arch.MTP(i)
	return nil
}

// ruleList is a repeatable flag of REGEX=TYPE.
type ruleList struct{ rules []pipeline.Rule }

func (v *ruleList) Type() string   { return "REGEX=TYPE" }
func (v *ruleList) String() string { return "" }

func (v *ruleList) Set(s string) error {
	r, err := pipeline.ParseRule(s)
	if err != nil {
		return err
	}
	v.rules = append(v.rules, r)
	return nil
}

// outputHessians says where Hessians of outputs were used, and what they promised.
func outputHessians(o *pipeline.OutputReport) string {
	s := fmt.Sprintf("%d of %d linears, from %d tokens", o.Linears, o.Linears+o.Skipped, o.Tokens)
	if o.Predicted > 0 {
		s += fmt.Sprintf("; held-out gradients predict %.2f of the error there", o.Predicted)
	}
	if n := len(o.Opaque); n > 0 {
		s += fmt.Sprintf("; %d branches without derivatives are left out, such as %s", n, o.Opaque[0])
	}
	return s
}
