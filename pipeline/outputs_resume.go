package pipeline

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/llmq/llmq/store"
)

// outputsName is the value of the Hessians of outputs in a work folder. All attempts of a run have the same.
const outputsName = "outputs"

// keptOutputs are outputs, whose file follows.
type keptOutputs struct {
	At                 map[string][]keptBlock
	Bytes              int64
	Rep                OutputReport
	Predicted, Present float64
}

// keptBlock is an outputBlock.
type keptBlock struct {
	Rows   int
	Offset int64
}

// keep keeps the Hessians in a work folder.
func (o *outputs) keep(work Work) error {
	w, err := work.Create(outputsName)
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	k := keptOutputs{At: map[string][]keptBlock{}, Bytes: o.end, Rep: o.rep, Predicted: o.predicted, Present: o.present}
	for id, blocks := range o.at {
		for _, b := range blocks {
			k.At[id] = append(k.At[id], keptBlock{b.rows, b.offset})
		}
	}
	if err := gob.NewEncoder(w).Encode(&k); err != nil {
		return err
	}
	if _, err := io.Copy(w, io.NewSectionReader(o.file, 0, o.end)); err != nil {
		return fmt.Errorf("output Hessians: %w", err)
	}
	return w.Commit()
}

// recallOutputs returns the Hessians that a work folder has, nil if it has none.
func recallOutputs(work store.Store, dir string) (*outputs, error) {
	f, err := work.Open(outputsName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16) // gob reads no further than it must from what can read single bytes
	var k keptOutputs
	if err := gob.NewDecoder(r).Decode(&k); err != nil {
		return nil, fmt.Errorf("the work folder: %s: %w", outputsName, err)
	}
	o, err := newOutputs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(struct{ io.Writer }{io.NewOffsetWriter(o.file, 0)}, r, k.Bytes); err != nil {
		o.close()
		return nil, fmt.Errorf("the work folder: %s: %w", outputsName, err)
	}
	for id, blocks := range k.At {
		for _, b := range blocks {
			o.at[id] = append(o.at[id], outputBlock{b.Rows, b.Offset})
		}
	}
	o.end, o.predicted, o.present = k.Bytes, k.Predicted, k.Present
	o.rep = k.Rep
	o.rep.Opaque = append([]string{}, k.Rep.Opaque...) // JSON has an empty list, never null
	return o, nil
}
