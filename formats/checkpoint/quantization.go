package checkpoint

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"

	"github.com/llmq/llmq/internal/sniff"
	"github.com/llmq/llmq/internal/text"
)

// quantization is what quantization_config says that the parts leave open.
type quantization struct {
	method string // "" if there is none
	// bits lists the widths of codes that are named, in the order of their groups; groupSize is 0 if unsaid.
	bits      []int
	groupSize int
	dynamic   bool // GPTQModel: other settings for some linears
	// checkpointFormat is "gptq_v2" where zero points are stored as they are, not minus one.
	checkpointFormat string
	version          string // of AWQ's layout
	// blocks are the rows and columns that share a scale; nil if a block is a group, a row or the tensor.
	blocks [][2]int
}

// quantizationFile holds ModelOpt's configuration where config.json has none.
const quantizationFile = "hf_quant_config.json"

// readQuantization reads quantization_config. Where all weights are floats it does not matter whether it can be read.
func readQuantization(dir string, raw json.RawMessage, floats bool) (quantization, error) {
	var q quantization
	if len(raw) == 0 || string(raw) == "null" {
		b, err := text.ReadFile(filepath.Join(dir, quantizationFile), maxJSONBytes)
		if err != nil {
			if missing(err) {
				return q, nil
			}
			return q, formatErrorf("%v", err)
		}
		if what := sniff.Impostor(b); what != "" {
			return q, formatErrorf("%s: it is %s", filepath.Join(dir, quantizationFile), what)
		}
		var file struct {
			Quantization struct {
				Algo string `json:"quant_algo"`
			} `json:"quantization"`
		}
		if err := unmarshal(b, &file); err != nil {
			return q, formatErrorf("%s: %v", quantizationFile, err)
		}
		if file.Quantization.Algo != "" {
			q.method = "modelopt"
		}
		return q, nil
	}
	var c struct {
		Method     string          `json:"quant_method"`
		Bits       *int            `json:"bits"`
		WBit       *int            `json:"w_bit"`
		GroupSize  int             `json:"group_size"`
		Dynamic    json.RawMessage `json:"dynamic"`
		Checkpoint string          `json:"checkpoint_format"`
		Version    string          `json:"version"`
		BlockSize  []int           `json:"weight_block_size"`
		Load4      bool            `json:"load_in_4bit"`
		Load8      bool            `json:"load_in_8bit"`
		Packing    string          `json:"packing_format"`
		Transform  json.RawMessage `json:"transform_config"`
		Groups     map[string]struct {
			Weights *struct {
				Bits  int   `json:"num_bits"`
				Group *int  `json:"group_size"`
				Block []int `json:"block_structure"`
			} `json:"weights"`
		} `json:"config_groups"`
	}
	if err := unmarshal(raw, &c); err != nil && floats {
		q.method = "unreadable: " + err.Error() // and left over
		return q, nil
	} else if err != nil {
		return q, formatErrorf("quantization_config: %v", err)
	}
	q.method, q.version, q.checkpointFormat = c.Method, c.Version, c.Checkpoint
	if q.method == "" && (c.Load4 || c.Load8) {
		q.method = "bitsandbytes"
	}
	switch {
	case len(c.Transform) > 0 && string(c.Transform) != "null" && string(c.Transform) != "{}":
		return q, unsupportedf("quantization_config: transform_config is not supported: weights are rotated, and activations must be")
	case strings.HasSuffix(c.Method, "auto-round") && !strings.Contains(c.Packing, "gptq") && !strings.Contains(c.Packing, "awq"):
		return q, unsupportedf("quantization_config: AutoRound's packing_format %q is not supported; those of GPTQ and AWQ are", c.Packing)
	}
	q.groupSize = max(c.GroupSize, 0)
	q.dynamic = len(c.Dynamic) > 0 && string(c.Dynamic) != "null" && string(c.Dynamic) != "{}"
	for _, b := range []*int{c.Bits, c.WBit} {
		if b != nil {
			q.bits = append(q.bits, *b)
		}
	}
	addBlock := func(b []int) error {
		switch {
		case len(b) == 0:
			return nil
		case len(b) != 2 || b[0] < 1 || b[1] < 1:
			return formatErrorf("quantization_config: blocks of %d: not two positive sizes", b)
		}
		q.blocks = append(q.blocks, [2]int{b[0], b[1]})
		return nil
	}
	if err := addBlock(c.BlockSize); err != nil {
		return q, err
	}
	for _, name := range sortedKeys(c.Groups) {
		if w := c.Groups[name].Weights; w != nil {
			if !slices.Contains(q.bits, w.Bits) {
				q.bits = append(q.bits, w.Bits)
			}
			if w.Group != nil && q.groupSize == 0 {
				q.groupSize = max(*w.Group, 0)
			}
			if err := addBlock(w.Block); err != nil {
				return q, err
			}
		}
	}
	return q, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
