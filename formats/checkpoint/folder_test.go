package checkpoint

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/safetensors"
)

// stored is a tensor of a test's checkpoint.
type stored struct {
	name  string
	dtype safetensors.DType
	shape []int
	data  []byte
}

func ints32(v ...int32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, uint32(x))
	}
	return b
}

func floats32(v ...float32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

func writeFile(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// encode is a safetensors file.
func encode(tensors []stored) []byte {
	var header strings.Builder
	var data []byte
	for i, s := range tensors {
		if i > 0 {
			header.WriteByte(',')
		}
		shape, _ := json.Marshal(append([]int{}, s.shape...))
		fmt.Fprintf(&header, `%q:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, s.name, s.dtype, shape, len(data), len(data)+len(s.data))
		data = append(data, s.data...)
	}
	h := "{" + header.String() + "}"
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h...), data...)
}

func folder(t testing.TB, tensors []stored) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir, safetensors.SingleFile, encode(tensors))
	return dir
}

// pack puts codes of some bits into words, the first in the lowest bits; words begin anew after perRow codes.
func pack(codes []int, width, perRow int) (b []byte) {
	for len(codes) > 0 {
		row := codes[:perRow]
		codes = codes[perRow:]
		bits := make([]uint32, ceil(perRow*width, 32))
		for i, c := range row {
			for k := range width {
				at := i*width + k
				bits[at/32] |= uint32(c>>k&1) << (at % 32)
			}
		}
		for _, w := range bits {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
	}
	return b
}

// transpose is a rows×cols matrix's.
func transpose(b []byte, rows, cols int) []byte {
	out := make([]byte, 0, len(b))
	for c := range cols {
		for r := range rows {
			out = append(out, b[4*(r*cols+c):][:4]...)
		}
	}
	return out
}

// code is the i-th of a sequence that has all values of some bits.
func code(i, width int) int { return (i*i*7 + i*5 + i/3) & (1<<width - 1) }

// gptqFolder is a GPTQ weight of out×in in groups of size, and its values.
func gptqFolder(width, out, in, size int, v2, order bool) ([]stored, []float32) {
	groups := in / size
	codes, zeros, scales := make([]int, out*in), make([]int, groups*out), make([]float32, groups*out)
	index := make([]int32, in)
	for i := range codes {
		codes[i] = code(i, width)
	}
	for i := range zeros {
		zeros[i] = code(i+3, width)
		scales[i] = 0.5 + float32(i%5)*0.125
	}
	want := make([]float32, out*in)
	one := 1
	if v2 {
		one = 0
	}
	for i := range index {
		g := i / size
		if order {
			g = i * 5 % groups
		}
		index[i] = int32(g)
		for o := range out {
			want[o*in+i] = scales[g*out+o] * float32(codes[o*in+i]-zeros[g*out+o]-one)
		}
	}
	words := in * width / 32
	parts := []stored{
		{"m.qweight", safetensors.I32, []int{words, out}, transpose(pack(codes, width, in), out, words)},
		{"m.qzeros", safetensors.I32, []int{groups, out * width / 32}, pack(zeros, width, out)},
		{"m.scales", safetensors.F32, []int{groups, out}, floats32(scales...)},
	}
	if order {
		parts = append(parts, stored{"m.g_idx", safetensors.I32, []int{in}, ints32(index...)})
	}
	return parts, want
}

// awqFolder is an AWQ weight.
func awqFolder(out, in, size int) ([]stored, []float32) {
	groups := in / size
	order := []int{0, 2, 4, 6, 1, 3, 5, 7}
	words := func(rows int, at func(r, o int) int) (b []byte) {
		for r := range rows {
			for w := range out / 8 {
				v := uint32(0)
				for i, o := range order {
					v |= uint32(at(r, 8*w+o)) << (4 * i)
				}
				b = binary.LittleEndian.AppendUint32(b, v)
			}
		}
		return b
	}
	q := func(i, o int) int { return code(i*out+o, 4) }
	z := func(g, o int) int { return code(g*out+o+1, 4) }
	scales, want := make([]float32, groups*out), make([]float32, out*in)
	for i := range scales {
		scales[i] = 0.25 + float32(i%7)
	}
	for o := range out {
		for i := range in {
			want[o*in+i] = float32(q(i, o)-z(i/size, o)) * scales[i/size*out+o]
		}
	}
	return []stored{
		{"m.qweight", safetensors.I32, []int{in, out / 8}, words(in, q)},
		{"m.qzeros", safetensors.I32, []int{groups, out / 8}, words(groups, z)},
		{"m.scales", safetensors.F32, []int{groups, out}, floats32(scales...)},
	}, want
}

// torchZip is a file of torch.save with one tensor w, given by the bytes of its shape and strides.
func torchZip(t testing.TB, pickle, storage []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range map[string][]byte{"archive/data.pkl": pickle, "archive/data/0": storage} {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// statePickle is a state dict of the tensor w: a view of a storage of float32.
func statePickle(elements, offset byte, shape, strides [2]byte) []byte {
	s := "\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" +
		"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK" + string([]byte{elements}) + "tQ" +
		"K" + string([]byte{offset}) + "K" + string([]byte{shape[0]}) + "K" + string([]byte{shape[1]}) + "\x86K" + string([]byte{strides[0]}) + "K" + string([]byte{strides[1]}) +
		"\x86\x89ccollections\nOrderedDict\n)RtRu}b."
	return []byte(s)
}
