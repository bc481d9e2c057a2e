package ggml

import (
	"strconv"
	"strings"
)

// Name is a tensor's name in its parts: "blk.3.attn_q.weight" is layer 3, stem "attn_q", part "weight".
type Name struct {
	Layer int    // −1 outside the layers
	Stem  string // may have dots: "nextn.eh_proj"
	Part  string // "weight", "bias"; "" where the name has one word
}

// LayerName is what a layer is called, "blk.3", and with a dot how its tensors' names begin.
func LayerName(layer int) string { return layerWord + strconv.Itoa(layer) }

const layerWord = "blk."

// ExpertName is what an expert's matrix in a tensor of several is called: "blk.0.ffn_up_exps.weight[3]".
func ExpertName(tensor string, expert int) string { return tensor + "[" + strconv.Itoa(expert) + "]" }

// ItemName is what progress is told about a tensor by: its layer's name, "blk.3", or its own outside the layers.
func ItemName(tensor string) string {
	if n := ParseName(tensor); n.Layer >= 0 {
		return LayerName(n.Layer)
	}
	return tensor
}

// ParseName takes a name apart. Every name has parts: what is no layer's is outside the layers.
func ParseName(name string) Name {
	n := Name{Layer: -1, Stem: name}
	if rest, ok := strings.CutPrefix(name, layerWord); ok {
		if number, stem, ok := strings.Cut(rest, "."); ok {
			if layer, err := strconv.Atoi(number); err == nil && layer >= 0 {
				n.Layer, n.Stem = layer, stem
			}
		}
	}
	if dot := strings.LastIndexByte(n.Stem, '.'); dot >= 0 {
		n.Stem, n.Part = n.Stem[:dot], n.Stem[dot+1:]
	}
	return n
}

// String puts the name together again.
func (n Name) String() string {
	s := n.Stem
	if n.Layer >= 0 {
		s = LayerName(n.Layer) + "." + s
	}
	if n.Part != "" {
		s += "." + n.Part
	}
	return s
}

// With is the name of another part of the same tensor: the bias beside a weight.
func (n Name) With(part string) string {
	n.Part = part
	return n.String()
}
