package pipeline

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// OutputHessian says whether linears are quantized with what errors of their outputs, together, do to the predictions
// (quant.Job.Outputs). That takes a pass of the calibration text through the original model and back.
type OutputHessian int

const (
	OutputHessianOff OutputHessian = iota
	OutputHessianOn
	// OutputHessianAuto takes it for the linears where, by gradients that it was not made of, it pays.
	OutputHessianAuto
)

var outputHessianNames = []string{"off", "on", "auto"}

func (o OutputHessian) String() string { return outputHessianNames[o] }

// OutputHessianNames lists what ParseOutputHessian takes.
func OutputHessianNames() []string { return slices.Clone(outputHessianNames) }

// ParseOutputHessian is String's inverse.
func ParseOutputHessian(s string) (OutputHessian, error) {
	if i := slices.Index(outputHessianNames, s); i >= 0 {
		return OutputHessian(i), nil
	}
	return 0, fmt.Errorf("%q: want on, off or auto", s)
}

const (
	// outputRows is the most rows of a block of H_O. Wider outputs have several, as equal as can be, and so have those of more than
	// wideOutputs times the residual stream's width, an MLP's: whole, they would take more time than all others, for the least gain.
	outputRows  = 4096
	wideOutputs = 2
	// expertRows is the same for experts, of which there are many.
	expertRows = 512
	// A layer of an 8B model computes 2.3 GB of 4096 tokens on its way forth and back, which would be half of all that its run takes.
	backBytes = 1 << 30
	backLeast = 1024
	// outputGain is the share of the error below which H_O pays, by gradients that it was not made of.
	outputGain = 0.99
	// Gradients are taken of gradientShare of the calibration tokens, up to gradientEnough, and of half of them if that is more; of gradientLeast
	// where there are so many. Of 65536 tokens of two layers of 2048 the gradients of all took nearly as long as the rest of the run.
	gradientShare  = 5. / 8
	gradientEnough = 65536
	gradientLeast  = 8192
	// heldOutEvery: of so many sequences one judges whether the others' gradients pay.
	heldOutEvery = 8
)

// outputBudget bounds the sums of a layer's linears that are made together, one linear's aside. Layers of many experts, whose sums take
// more, are gone through again for the others. Tests take less.
var outputBudget = int64(4 << 30)

// OutputReport tells of the Hessians of outputs. The JSON names are part of the command line's interface.
type OutputReport struct {
	Tokens  int `json:"tokens"`
	Linears int `json:"linears"` // quantized with them
	Skipped int `json:"skipped"` // linears where they do not pay
	// Predicted is the mean share of the error, weighted by the effect of the outputs on the predictions, that is left by gradients
	// that the Hessians were not made of; 0 where nobody asked.
	Predicted float64 `json:"predicted"`
	// Opaque are the branches without a derivative. Their linears are quantized without, and gradients went around them.
	Opaque []string `json:"opaque"`
}

// outputs are the Hessians of linears' outputs, in a temporary file until the linears are quantized. Nil has none.
type outputs struct {
	file *os.File
	end  int64
	at   map[string][]outputBlock // by the linear's ID
	rep  OutputReport
	// Σ of predicted and present errors of the held-out gradients.
	predicted, present float64
}

// outputBlock is where a block's lower triangle is, row by row.
type outputBlock struct {
	rows   int
	offset int64
}

func newOutputs(dir string) (*outputs, error) {
	file, err := os.CreateTemp(dir, ".llmq-outputs-*")
	if err != nil {
		return nil, fmt.Errorf("output Hessians: %w", err)
	}
	os.Remove(file.Name()) // as in package states
	return &outputs{file: file, at: map[string][]outputBlock{}, rep: OutputReport{Opaque: []string{}}}, nil
}

func (o *outputs) close() {
	if o != nil {
		o.file.Close()
		os.Remove(o.file.Name())
	}
}

func (o *outputs) report() *OutputReport {
	if o == nil {
		return nil
	}
	rep := o.rep
	if o.present > 0 {
		rep.Predicted = o.predicted / o.present
	}
	return &rep
}

// put stores the blocks of a linear.
func (o *outputs) put(id string, blocks []*tensor.Matrix) error {
	for _, h := range blocks {
		packed := make([]float32, 0, h.Rows*(h.Rows+1)/2)
		for i := range h.Rows {
			packed = append(packed, h.Row(i)[:i+1]...)
		}
		if _, err := o.file.WriteAt(raw(packed), o.end); err != nil {
			return fmt.Errorf("output Hessians: writing %d bytes: %w", 4*len(packed), err)
		}
		o.at[id] = append(o.at[id], outputBlock{h.Rows, o.end})
		o.end += 4 * int64(len(packed))
	}
	return nil
}

// of returns the blocks of a linear whose outputs have been divided by scale, if any; nil if there are none.
func (o *outputs) of(lin *model.Linear, scale []float32) ([]*tensor.Matrix, error) {
	if o == nil {
		return nil, nil
	}
	var blocks []*tensor.Matrix
	first := 0
	for _, b := range o.at[lin.ID()] {
		packed := make([]float32, b.rows*(b.rows+1)/2)
		if _, err := o.file.ReadAt(raw(packed), b.offset); err != nil {
			return nil, fmt.Errorf("output Hessians: %s: %w", lin.ID(), err)
		}
		h := tensor.New(b.rows, b.rows)
		for i := range b.rows {
			for j, v := range packed[:i+1] {
				if scale != nil {
					v *= scale[first+i] * scale[first+j]
				}
				h.Row(i)[j], h.Row(j)[i] = v, v
			}
			packed = packed[i+1:]
		}
		blocks = append(blocks, h)
		first += b.rows
	}
	return blocks, nil
}

// raw is values in the machine's own byte order: the file never leaves the process.
func raw(v []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}

// roomForGradients refuses a disk on which the pass of gradients would run out of room after hours. To go on without the
// Hessians would make the file's bytes depend on the disk.
func roomForGradients(needed int64, free uint64, dir string) error {
	if needed > 0 && uint64(needed) > free {
		return fmt.Errorf("output Hessians need %d bytes of temporary files in %s, where %d are free: make room, let more stay in memory "+
			"(--memory), or do without (--output-hessian off)", needed, dir, free)
	}
	return nil
}

// noteOutputs notes that the outputs of what comes before a group have been divided by scale, channel by channel.
func (r *transformer) noteOutputs(g *quant.Group, scale []float32) {
	if g.Prev == nil || g.Before == nil {
		return
	}
	if r.outputs == nil {
		r.outputs = map[string][]float32{}
	}
	s := r.outputs[g.Prev.Name]
	if s == nil {
		s = slices.Repeat([]float32{1}, g.Before.W.Rows)
		r.outputs[g.Prev.Name] = s
	}
	done := make([]bool, len(s))
	for j, row := range g.Prev.Row {
		if !done[row] {
			done[row] = true
			s[row] *= scale[j]
		}
	}
}
