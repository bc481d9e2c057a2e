package main

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// The tensors of --tokens and --logits.
const (
	tokensTensor = "tokens"
	logitsTensor = "logits"
)

// runLogits writes the logits of the sequences of token ids in a file.
func (a *app) runLogits(ctx context.Context, opts evalOptions) error {
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	if err := a.checkOutput(opts.Logits, opts.Force, reading{opts.Tokens, "the tokens"}, reading{opts.Model, "the input"}); err != nil {
		return err
	}
	sequences, err := readTokens(opts.Tokens)
	if err != nil {
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
	m.TableGELU = m.Precision == kernels.F32 // as what it is compared with
	for i, s := range sequences {
		for j, id := range s {
			if id < 0 || int(id) >= m.Vocab {
				return fmt.Errorf("%s: %s[%d %d] is %d, %s has a vocabulary of %d", opts.Tokens, tokensTensor, i, j, id, opts.Model, m.Vocab)
			}
		}
	}
	out, err := safetensors.Create(opts.Logits, []safetensors.Info{{
		Name: logitsTensor, DType: safetensors.F32, Shape: []int{len(sequences), len(sequences[0]), m.Vocab},
	}}, nil, safetensors.Options{Overwrite: opts.Force})
	if err != nil {
		return err
	}
	defer out.Abort() // no effect after Close
	progress := a.progress()
	defer progress.Done()
	var buf []byte
	err = eval.Logits(ctx, m, sequences, eval.Options{Memory: int64(opts.Memory), Progress: progress}, func(logits *tensor.Matrix) error {
		for i := range logits.Rows {
			if buf == nil {
				buf = make([]byte, 4*logits.Cols)
			}
			tensor.EncodeF32(buf, logits.Row(i))
			if _, err := out.Write(buf); err != nil {
				return err
			}
		}
		return nil
	})
	if err = unchanged(err, src); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	progress.Done()
	if opts.JSON {
		return a.printJSON(map[string]any{"model": opts.Model, "tokens": opts.Tokens, "logits": opts.Logits,
			"sequences": len(sequences), "length": len(sequences[0]), "vocabulary": m.Vocab})
	}
	t := newTable(a.stdout)
	t.row("model", "%s", opts.Model)
	t.row("tokens", "%s, %d sequences of %d", opts.Tokens, len(sequences), len(sequences[0]))
	t.row("logits", "%s", opts.Logits)
	return t.flush()
}

// readTokens reads the tensor "tokens" of a safetensors file: I32 or I64, [sequences, length].
func readTokens(path string) ([][]int32, error) {
	st, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	info, ok := st.Lookup(tokensTensor)
	if !ok {
		return nil, fmt.Errorf("%s: there is no tensor %q", path, tokensTensor)
	}
	if len(info.Shape) != 2 || info.Shape[0] == 0 || info.Shape[1] == 0 || info.DType != safetensors.I32 && info.DType != safetensors.I64 {
		return nil, fmt.Errorf("%s: tensor %q is %s %v, want I32 or I64 [sequences, length]", path, tokensTensor, info.DType, info.Shape)
	}
	data, _, err := st.Tensor(tokensTensor)
	if err != nil {
		return nil, err
	}
	sequences := make([][]int32, info.Shape[0])
	for i := range sequences {
		sequences[i] = make([]int32, info.Shape[1])
		for j := range sequences[i] {
			k := i*info.Shape[1] + j
			if info.DType == safetensors.I32 {
				sequences[i][j] = int32(binary.LittleEndian.Uint32(data[4*k:]))
				continue
			}
			v := int64(binary.LittleEndian.Uint64(data[8*k:]))
			if v != int64(int32(v)) {
				return nil, fmt.Errorf("%s: %s[%d %d] is %d, which is no token id", path, tokensTensor, i, j, v)
			}
			sequences[i][j] = int32(v)
		}
	}
	return sequences, nil
}
