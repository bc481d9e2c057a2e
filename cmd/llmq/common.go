package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
)

// openSource opens a checkpoint folder, with options, or a GGUF file. One of the hub is fetched.
func (a *app) openSource(ctx context.Context, path string, opt hf.Options) (pipeline.Source, error) {
	path, err := a.local(ctx, path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return a.openFolder(path, opt)
	case strings.HasSuffix(path, ".safetensors"):
		return nil, fmt.Errorf("%s: give the folder that holds it, config.json and the tokenizer", path)
	}
	if opt.Pre != "" {
		return nil, fmt.Errorf("%s: --pre is for checkpoint folders; a GGUF file names its own", path)
	}
	if opt.LoRA != "" {
		return nil, fmt.Errorf("%s: --lora is for checkpoint folders: an adapter is merged into weights under their original names", path)
	}
	if opt.MTP != arch.AutoMTP {
		return nil, fmt.Errorf("%s: --mtp is for checkpoint folders: a GGUF file's layers stay as they are", path)
	}
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	switch scaled, err := gguf.Scales(f); {
	case err != nil:
		f.Close()
		return nil, err
	case scaled != nil:
		return scaled, nil
	}
	return f, nil
}

// openFolder opens a checkpoint and warns of what it leaves out.
func (a *app) openFolder(path string, opt hf.Options) (pipeline.Source, error) {
	c, err := hf.Open(path, opt)
	if err != nil {
		return nil, err
	}
	for _, w := range c.Warnings() {
		a.warn("%s", w)
	}
	return c, nil
}

// unchanged returns err, or, in its place, that a file of a source was written to since it was opened: no result of it is
// right, and an error may come from that.
func unchanged(err error, sources ...model.Source) error {
	for _, src := range sources {
		if changed := model.Unchanged(src); changed != nil {
			return changed
		}
	}
	return err
}

// refuseZero refuses a limit of 0 that is given on the command line, where 0 would be taken for none given. names are those
// of flags whose values print as 0 then.
func refuseZero(flags *pflag.FlagSet, names ...string) error {
	for _, name := range names {
		if f := flags.Lookup(name); f.Changed && strings.TrimPrefix(f.Value.String(), "-") == "0" {
			return usagef("--%s 0: need more than 0", name)
		}
	}
	return nil
}

// warn prints a warning.
func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.stderr, "llmq: warning: "+format+"\n", args...)
}

// warnContext warns of sequences longer than those that the model was trained for.
func (a *app) warnContext(src model.Source, tokens int) {
	arch, _ := src.Meta("general.architecture")
	length, _ := src.Meta(fmt.Sprint(arch) + ".context_length")
	trained, err := strconv.ParseUint(fmt.Sprint(length), 10, 64) // of whatever integer type
	if err == nil && uint64(tokens) > trained {
		a.warn("%s was trained for contexts of %d tokens; it is not made for sequences of %d", src.Name(), trained, tokens)
	}
}

// refuseEmpty refuses a text or list flag that is given as empty, as by a shell's unset variable: it would count as not given.
func refuseEmpty(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		value, kind := f.Value.String(), f.Value.Type()
		if (value == "" && kind == "string" || value == "[]") && err == nil {
			err = usagef("--%s is empty", f.Name)
		}
	})
	return err
}

// takeOne has a flag that names one file refuse a second: the last would count, as it does of numbers, and the others be read
// by nobody.
func takeOne(f *pflag.Flag) {
	switch name, _ := pflag.UnquoteUsage(f); name {
	case "FILE", "FOLDER", "MODEL":
		if f.Value.Type() == "string" {
			f.Value = &oneValue{Value: f.Value}
		}
	}
}

type oneValue struct {
	pflag.Value
	given *string
}

func (v *oneValue) Set(s string) error {
	if v.given != nil && *v.given != s {
		return fmt.Errorf("it is given twice, first as %q", *v.given)
	}
	v.given = &s
	return v.Value.Set(s)
}

// setThreads limits the processors that computations use; 0 leaves all.
func setThreads(n int) error {
	const most = 1024 // the runtime makes room for each
	if n < 0 || n > most {
		return usagef("--threads %d: need 1 to %d, or 0 for all", n, most)
	}
	if n > 0 {
		runtime.GOMAXPROCS(n)
	}
	return nil
}

// printJSON writes one object and a newline.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table aligns rows of a name and a value.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) *table { return &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (t *table) row(name, format string, args ...any) {
	fmt.Fprintf(t.w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
}

func (t *table) flush() error { return t.w.Flush() }

var byteUnits = []struct {
	name string
	size float64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// formatBytes prints a size with three digits: "4.21 GiB".
func formatBytes(n int64) string {
	for _, u := range byteUnits {
		if v := float64(n) / u.size; v >= 1 {
			return fmt.Sprintf("%.*f %s", max(0, 2-int(math.Log10(v))), v, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// byteSize is a flag's value such as 4096, 512MiB, 1.5G or 4.2GB. Units are those of GNU coreutils: KiB and K are 1024
// bytes, KB is 1000. Capitals do not matter.
type byteSize int64

func (b *byteSize) Type() string { return "size" }

// String writes a size in the largest unit of which it is a whole number.
func (b *byteSize) String() string {
	n, unit := int64(*b), -1
	for ; n != 0 && n%1024 == 0 && unit+1 < len(sizePrefixes); n /= 1024 {
		unit++
	}
	if unit < 0 {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%d%ciB", n, sizePrefixes[unit])
}

func (b *byteSize) Set(s string) error {
	number := strings.ToUpper(strings.TrimSpace(s))
	number, decimal := strings.CutSuffix(number, "B")
	number, binary := strings.CutSuffix(number, "I")
	unit := 1.0
	if i := len(number) - 1; i >= 0 {
		if power := strings.IndexByte(sizePrefixes, number[i]) + 1; power > 0 {
			base := 1024.0
			if decimal && !binary {
				base = 1000
			}
			number, unit = number[:i], math.Pow(base, float64(power))
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if bytes := v * unit; err != nil || !(v >= 0) || bytes >= math.MaxInt64 || binary && unit == 1 || v > 0 && bytes < 1 {
		return fmt.Errorf("%q is not a size such as 512MiB (2²⁰ bytes each) or 2GB (10⁹ bytes each)", s)
	}
	*b = byteSize(math.Round(v * unit))
	return nil
}

// sizePrefixes are those of the units, in order of their powers.
const sizePrefixes = "KMGTPE"

// defaultMemory holds the hidden states of 65536 calibration tokens of most models without a temporary file.
const defaultMemory = 2 << 30

// quantizeMemory leaves room in 4 GB for what the layers of a model of 8 billion parameters take: files of hidden states stay in the
// system's cache where there is room.
const quantizeMemory = 512 << 20

const memoryUsage = "keep at most `SIZE` of hidden states in memory; the rest goes to a temporary file (0: no limit)"

// precisionValue is a flag's value, auto or f32.
type precisionValue struct{ p kernels.Precision }

const precisionUsage = "auto (matrix products may round their inputs to bfloat16) or f32"

var precisionNames = []string{"auto", "f32"}

func (v *precisionValue) Type() string { return "precision" }

func (v *precisionValue) String() string {
	if v.p == kernels.F32 {
		return "f32"
	}
	return "auto"
}

func (v *precisionValue) Set(s string) error {
	switch s {
	case "auto":
		v.p = kernels.Auto
	case "f32":
		v.p = kernels.F32
	default:
		return fmt.Errorf("unknown precision %q; known: %s", s, strings.Join(precisionNames, ", "))
	}
	return nil
}
