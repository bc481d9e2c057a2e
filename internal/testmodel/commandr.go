package testmodel

import (
	"strings"
)

// CommandR returns the model "llama-linear" as a command-r model: LayerNorms without bias, attention and the MLP beside each other behind one
// of them, output weights that are the embeddings.
func CommandR() *Source {
	src := New("llama-linear").Source()
	s := &Source{Path: "testmodel/command-r"}
	for _, kv := range src.KV {
		if key, ok := strings.CutPrefix(kv.Key, "llama."); ok {
			kv.Key = "command-r." + strings.Replace(key, "layer_norm_rms_epsilon", "layer_norm_epsilon", 1)
		}
		s.KV = append(s.KV, kv)
	}
	s.KV.Set("general.architecture", "command-r")
	s.KV.Set("command-r.logit_scale", float32(0.25))
	for _, t := range src.List {
		if !strings.Contains(t.Name, "ffn_norm.") && t.Name != "output.weight" {
			s.List = append(s.List, t)
		}
	}
	return s
}
