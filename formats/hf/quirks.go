package hf

import (
	"encoding/json"
	"math"
)

// familyTokens completes ids and add with what llama.cpp's converter knows of a class.
func (c *Checkpoint) familyTokens(v *vocabulary, m tokenizerModel, ids map[string]int, add map[string]bool) error {
	for _, t := range m.quirks.Tokens {
		id, ok := v.id(t.Content)
		if _, named := ids[t.Kind]; ok && (!named || t.Always) {
			ids[t.Kind] = id
		}
	}
	for _, t := range m.quirks.IDs {
		if t.Size != 0 && t.Size != len(v.tokens) {
			continue
		}
		if t.ID < len(v.tokens) || t.Beyond {
			ids[t.Kind] = t.ID
		}
		if t.ID >= len(v.tokens) && t.Beyond {
			c.warn("%s: the id of %s is %d in models of this class, but there are %d tokens", c.dir, t.Kind, t.ID, len(v.tokens))
		}
	}
	if m.quirks.AddBOS {
		add["bos"] = true
	}
	if key := m.quirks.EOSKey; key != "" && m.config.Has(key) {
		if id := m.config.Int(key, -1, -1, math.MaxInt32); id >= 0 && id < len(v.tokens) {
			ids["eos"] = id
		}
		if err := m.config.Err(); err != nil {
			return err
		}
	}
	if m.quirks.EOTListed {
		if id, ok := c.firstOfSeveralEOS(); ok && id < len(v.tokens) {
			ids["eot"] = id
		}
	}
	return nil
}

// firstOfSeveralEOS is the first id of eos_token_id in generation_config.json, where that is a list of more than one.
func (c *Checkpoint) firstOfSeveralEOS() (int, bool) {
	generation, err := c.readObject(generationFile)
	if err != nil {
		return 0, false // loadGeneration has warned of it
	}
	var list []int
	raw, ok := generation.Get("eos_token_id")
	if !ok || json.Unmarshal(raw, &list) != nil || len(list) < 2 || list[0] < 0 {
		return 0, false
	}
	return list[0], true
}
