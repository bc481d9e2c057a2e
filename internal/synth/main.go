// Synth writes a llama checkpoint of any shape with Gaussian weights, shard by shard, so that speed and memory can be
// measured without a download. The same flags give the same bytes.
//
//	go run ./internal/synth -o /tmp/synth -layers 12 -dim 2048 -mlp 5632 -heads 32 -kv-heads 4 -vocab 32000
//
// With -experts it is a Qwen3-MoE checkpoint, in which -mlp is the width of an expert: the shape of Qwen3-30B-A3B's layers is
//
//	go run ./internal/synth -o /tmp/moe -layers 2 -dim 2048 -mlp 768 -heads 32 -kv-heads 4 -head-dim 128 -experts 128 -repeat
//
// With -config it is a checkpoint of the class and the sizes that a config.json says, Qwen3.5's, Nemotron-H's or DeepSeek-V3's, in
// FP8 if that says so; of the flags for shapes -layers and the others have no effect:
//
//	go run ./internal/synth -o /tmp/deltanet -config internal/synth/testdata/deltanet.json
//
// The tokenizer is copied from another checkpoint, by default the built-in model; readers pad its vocabulary.
//
// With -plant it writes a checkpoint as F32 GGUF with outlier features planted in it, which compute what it did:
//
//	go run ./internal/synth -plant testdata/gopher-4m -o /tmp/planted.gguf -channels 4 -factor 50
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

type options struct {
	dir, tokenizer, config                  string
	layers, dim, mlp, heads, kvHeads, vocab int
	headDim, experts, expertsUsed           int
	repeat                                  bool
	shardBytes                              int64
	seed                                    uint64
}

func main() {
	var o options
	flag.StringVar(&o.dir, "o", "", "folder or file to write, which must not exist")
	flag.StringVar(&o.tokenizer, "tokenizer", "testdata/gopher-4m", "checkpoint whose tokenizer is copied")
	flag.StringVar(&o.config, "config", "", "config.json of the checkpoint to write, in place of the shape's flags")
	flag.IntVar(&o.layers, "layers", 12, "transformer layers")
	flag.IntVar(&o.dim, "dim", 2048, "hidden size")
	flag.IntVar(&o.mlp, "mlp", 5632, "intermediate size")
	flag.IntVar(&o.heads, "heads", 32, "attention heads")
	flag.IntVar(&o.kvHeads, "kv-heads", 4, "key and value heads")
	flag.IntVar(&o.vocab, "vocab", 32000, "vocabulary size")
	flag.IntVar(&o.headDim, "head-dim", 0, "features of an attention head; 0: dim/heads")
	flag.IntVar(&o.experts, "experts", 0, "experts of each layer; 0: none, all tokens go through one MLP")
	flag.IntVar(&o.expertsUsed, "experts-used", 8, "with -experts: how many a token goes through")
	flag.BoolVar(&o.repeat, "repeat", false, "repeat some random rows, which is fast, in place of drawing all")
	flag.Int64Var(&o.shardBytes, "shard-bytes", 1<<30, "begin a new shard past this size")
	flag.Uint64Var(&o.seed, "seed", 0, "of the weights, or of the channels")
	checkpoint := flag.String("plant", "", "checkpoint to plant outlier features in")
	channels := flag.Int("channels", 4, "with -plant: of each norm")
	factor := flag.Float64("factor", 50, "with -plant: what those channels are multiplied by, and the weights that read them divided")
	flag.Parse()
	var err error
	if *checkpoint == "" {
		err = write(o)
	} else {
		err = plant(*checkpoint, o.dir, testmodel.Outliers{Channels: *channels, Factor: float32(*factor), Seed: o.seed})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "synth:", err)
		os.Exit(1)
	}
}

func write(o options) error {
	if o.dir == "" || min(o.layers, o.dim, o.mlp, o.heads, o.kvHeads, o.vocab) < 1 || o.headDim == 0 && o.dim%o.heads != 0 ||
		o.heads%o.kvHeads != 0 || min(o.experts, o.headDim) < 0 || o.experts > 0 && (o.expertsUsed < 1 || o.expertsUsed > o.experts) {
		return errors.New("need -o and a shape of positive sizes in which heads divide dim and kv-heads divide heads")
	}
	if o.headDim == 0 {
		o.headDim = o.dim / o.heads
	}
	infos := tensors(o)
	var given config
	if o.config != "" {
		var err error
		if given, err = readConfig(o.config, o.tokenizer); err != nil {
			return err
		}
		if infos, err = given.tensors(); err != nil {
			return err
		}
	}
	if err := os.Mkdir(o.dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "generation_config.json"} {
		data, err := os.ReadFile(filepath.Join(o.tokenizer, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.dir, name), data, 0o644); err != nil {
			return err
		}
	}
	err := error(nil)
	if given != nil {
		err = given.write(o.dir)
	} else {
		err = writeConfig(o)
	}
	if err != nil {
		return err
	}
	shards := split(infos, o.shardBytes)
	places := map[string]string{}
	var total int64
	for i, infos := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		if err := writeShard(filepath.Join(o.dir, name), infos, o); err != nil {
			return err
		}
		for _, info := range infos {
			places[info.Name] = name
			total += info.Bytes()
		}
	}
	fmt.Printf("%s: %d bytes of weights in %d shards\n", o.dir, total, len(shards))
	return safetensors.WriteIndex(o.dir, places, total, safetensors.Options{})
}

// writeConfig takes the special tokens from the tokenizer's checkpoint.
func writeConfig(o options) error {
	data, err := os.ReadFile(filepath.Join(o.tokenizer, "config.json"))
	if err != nil {
		return err
	}
	var c map[string]any
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	keys := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "num_hidden_layers": o.layers,
		"hidden_size": o.dim, "intermediate_size": o.mlp, "num_attention_heads": o.heads,
		"num_key_value_heads": o.kvHeads, "head_dim": o.headDim, "vocab_size": o.vocab,
		"max_position_embeddings": 4096, "tie_word_embeddings": false,
	}
	if o.experts > 0 {
		maps.Copy(keys, map[string]any{"architectures": []string{"Qwen3MoeForCausalLM"}, "model_type": "qwen3_moe",
			"num_experts": o.experts, "num_experts_per_tok": o.expertsUsed, "moe_intermediate_size": o.mlp, "norm_topk_prob": true,
			"decoder_sparse_step": 1, "mlp_only_layers": []int{}})
	}
	maps.Copy(c, keys)
	if data, err = json.MarshalIndent(c, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.dir, "config.json"), append(data, '\n'), 0o644)
}

// tensors lists the checkpoint's tensors in the order of the forward pass.
func tensors(o options) []safetensors.Info {
	var infos []safetensors.Info
	add := func(name string, shape ...int) {
		infos = append(infos, safetensors.Info{Name: name + ".weight", DType: safetensors.BF16, Shape: shape})
	}
	kv, q := o.kvHeads*o.headDim, o.heads*o.headDim
	mlp := func(p string) {
		add(p+"gate_proj", o.mlp, o.dim)
		add(p+"up_proj", o.mlp, o.dim)
		add(p+"down_proj", o.dim, o.mlp)
	}
	add("model.embed_tokens", o.vocab, o.dim)
	for i := range o.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		add(p+"input_layernorm", o.dim)
		add(p+"self_attn.q_proj", q, o.dim)
		add(p+"self_attn.k_proj", kv, o.dim)
		add(p+"self_attn.v_proj", kv, o.dim)
		add(p+"self_attn.o_proj", o.dim, q)
		add(p+"post_attention_layernorm", o.dim)
		if o.experts == 0 {
			mlp(p + "mlp.")
			continue
		}
		add(p+"self_attn.q_norm", o.headDim)
		add(p+"self_attn.k_norm", o.headDim)
		add(p+"mlp.gate", o.experts, o.dim)
		for e := range o.experts {
			mlp(fmt.Sprintf("%smlp.experts.%d.", p, e))
		}
	}
	add("model.norm", o.dim)
	add("lm_head", o.vocab, o.dim)
	return infos
}

// split begins a new shard whenever one has passed limit bytes.
func split(infos []safetensors.Info, limit int64) [][]safetensors.Info {
	var shards [][]safetensors.Info
	var size int64
	for i, first := 0, 0; i < len(infos); i++ {
		size += infos[i].Bytes()
		if size > limit || i == len(infos)-1 {
			shards = append(shards, infos[first:i+1])
			first, size = i+1, 0
		}
	}
	return shards
}

func writeShard(path string, infos []safetensors.Info, o options) error {
	out, err := safetensors.Create(path, infos, map[string]string{"format": "pt"}, safetensors.Options{})
	if err != nil {
		return err
	}
	defer out.Abort()
	for _, info := range infos {
		if err := writeWeights(out, info, o); err != nil {
			return err
		}
	}
	return out.Close()
}

// pieceRows is how many rows are made at a time.
const pieceRows = 256

// writeWeights draws every row from a generator of its own, so that rows can be made in parallel.
func writeWeights(out *safetensors.Writer, info safetensors.Info, o options) error {
	cols, size := info.Shape[len(info.Shape)-1], 2
	if info.DType == safetensors.F8E4M3 {
		size = 1
	}
	rows := int(info.Bytes()) / size / cols
	name := fnv.New64a()
	name.Write([]byte(info.Name))
	values := valuesOf(info)
	var data []byte
	for lo := 0; lo < rows; lo += pieceRows {
		n := min(pieceRows, rows-lo)
		if o.repeat && len(data) >= size*n*cols {
			if _, err := out.Write(data[:size*n*cols]); err != nil {
				return err
			}
			continue
		}
		data = make([]byte, size*n*cols)
		kernels.Parallel(n, 1, func(a, b int) {
			row := make([]float32, cols)
			for r := a; r < b; r++ {
				rng := rand.New(rand.NewPCG(o.seed, name.Sum64()+uint64(lo+r)))
				for j := range row {
					if row[j] = values.constant; values.spread > 0 {
						row[j] = values.spread * float32(rng.NormFloat64())
					}
				}
				if at := data[size*r*cols : size*(r+1)*cols]; size == 1 {
					for j, v := range row {
						at[j] = toE4M3(v)
					}
				} else {
					tensor.EncodeBF16(at, row)
				}
			}
		})
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	return nil
}
