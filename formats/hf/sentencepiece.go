package hf

import (
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/llmq/llmq/internal/sniff"
	"github.com/llmq/llmq/tokenizer"
)

// sentencePiece is tokenizer.model: SentencePiece's ModelProto (sentencepiece_model.proto).
type sentencePiece struct {
	pieces      []piece
	special     map[string]int // unk, bos, eos, pad → id, −1 for none
	spacePrefix bool
	warnings    []string
}

type piece struct {
	text  string
	score float32
	typ   tokenizer.Type // SentencePiece and GGUF number the types alike
}

// Field numbers and values of sentencepiece_model.proto.
const (
	modelPieces     = 1
	modelTrainer    = 2
	modelNormalizer = 3

	pieceText  = 1
	pieceScore = 2
	pieceType  = 3

	trainerModelType = 3
	trainerSuffix    = 24
	modelTypeUnigram = 1 // the default
	modelTypeBPE     = 2

	normalizerCharsmap    = 2
	normalizerDummyPrefix = 3
	normalizerExtraSpaces = 4
	normalizerEscape      = 5
)

// trainerIDs are the fields of TrainerSpec that number special pieces, with their defaults.
var trainerIDs = map[protowire.Number]struct {
	kind string
	id   int
}{40: {"unk", 0}, 41: {"bos", 1}, 42: {"eos", 2}, 43: {"pad", -1}}

func parseSentencePiece(file string, data []byte) (*sentencePiece, error) {
	s := &sentencePiece{special: map[string]int{}, spacePrefix: true}
	for _, t := range trainerIDs {
		s.special[t.kind] = t.id
	}
	modelType, extraSpaces, charsmap := uint64(modelTypeUnigram), uint64(1), 0
	suffix, escape := uint64(0), uint64(1)
	err := fields(data, func(f field) error {
		switch f.number {
		case modelPieces:
			p := piece{typ: tokenizer.Normal}
			err := fields(f.bytes, func(f field) error {
				switch f.number {
				case pieceText:
					p.text = string(f.bytes)
				case pieceScore:
					p.score = math.Float32frombits(uint32(f.value))
				case pieceType:
					p.typ = tokenizer.Type(f.value)
				}
				return nil
			})
			if err == nil && (p.typ < tokenizer.Normal || p.typ > tokenizer.Byte) {
				err = fmt.Errorf("type %d", p.typ)
			}
			if err != nil {
				return fmt.Errorf("piece %d: %w", len(s.pieces), err)
			}
			s.pieces = append(s.pieces, p)
		case modelTrainer:
			return fields(f.bytes, func(f field) error {
				switch t, isID := trainerIDs[f.number]; {
				case f.number == trainerModelType:
					modelType = f.value
				case f.number == trainerSuffix:
					suffix = f.value
				case isID:
					s.special[t.kind] = int(int32(f.value))
				}
				return nil
			})
		case modelNormalizer:
			return fields(f.bytes, func(f field) error {
				switch f.number {
				case normalizerCharsmap:
					charsmap = len(f.bytes)
				case normalizerDummyPrefix:
					s.spacePrefix = f.value != 0
				case normalizerExtraSpaces:
					extraSpaces = f.value
				case normalizerEscape:
					escape = f.value
				}
				return nil
			})
		}
		return nil
	})
	if what := sniff.Impostor(data); err != nil && what != "" {
		return nil, fmt.Errorf("%s: it is %s", file, what)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: not a SentencePiece model: %w", file, err)
	}
	if len(s.pieces) == 0 {
		return nil, fmt.Errorf("%s: not a SentencePiece model: no pieces", file)
	}
	if modelType != modelTypeBPE {
		return nil, fmt.Errorf("%s: model_type is %d; supported: %d (BPE)", file, modelType, modelTypeBPE)
	}
	for _, w := range []struct {
		there bool
		what  string
	}{
		{charsmap > 0, "the normalization of characters"},
		{extraSpaces != 0, "remove_extra_whitespaces"},
		{suffix != 0, "treat_whitespace_as_suffix, which puts spaces after words,"},
		{escape == 0, "escape_whitespaces: false"},
	} {
		if w.there {
			s.warnings = append(s.warnings, file+": "+w.what+" is left out: GGUF readers do not do it")
		}
	}
	return s, nil
}

// field is a field of a protocol buffer message.
type field struct {
	number protowire.Number
	value  uint64 // of a number
	bytes  []byte // of a string or message
}

// fields calls f with each field of a message.
func fields(message []byte, f func(field) error) error {
	for len(message) > 0 {
		number, wire, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		fd := field{number: number}
		switch wire {
		case protowire.VarintType:
			fd.value, n = protowire.ConsumeVarint(message)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(message)
			fd.value = uint64(v)
		case protowire.Fixed64Type:
			fd.value, n = protowire.ConsumeFixed64(message)
		case protowire.BytesType:
			fd.bytes, n = protowire.ConsumeBytes(message)
		default:
			return fmt.Errorf("field %d has wire type %d", number, wire)
		}
		if n < 0 {
			return fmt.Errorf("field %d: %w", number, protowire.ParseError(n))
		}
		message = message[n:]
		if err := f(fd); err != nil {
			return err
		}
	}
	return nil
}

// loadSentencePiece sets the metadata of a SentencePiece tokenizer.
func (c *Checkpoint) loadSentencePiece(f *tokenizerFiles, m tokenizerModel) (*vocabulary, error) {
	size := m.vocab
	if size == 0 {
		size = len(f.model.pieces)
	}
	v := newVocabulary(size)
	v.scored = true
	for id, p := range f.model.pieces {
		switch {
		case p.typ == tokenizer.UserDefined:
			p.text = plainSpaces(p.text)
		case m.quirks.NUL != "" && p.text == "\x00":
			p.text = m.quirks.NUL
		case m.quirks.Unused != "" && strings.HasPrefix(p.text, m.quirks.Unused):
			p.typ = tokenizer.Unused
		}
		if first, dup := v.id(p.text); dup {
			return nil, fmt.Errorf("%q has two ids, %d and %d", p.text, first, id)
		}
		if err := v.put(id, p.text, p.typ, p.score); err != nil {
			return nil, err
		}
	}
	v.add(f.added, false, c.warn)
	v.pad(padScore)
	if err := v.checkNUL(); err != nil {
		return nil, err
	}
	if err := v.checkBytes(); err != nil {
		return nil, err
	}
	c.warnings = append(c.warnings, f.model.warnings...)
	c.setVocabulary(tokenizer.ModelSentencePiece, "default", v)
	return v, c.setSpacePrefix(f, m, f.model.spacePrefix)
}

// checkBytes refuses SentencePiece vocabularies that leave bytes out.
func (v *vocabulary) checkBytes() error {
	if n := v.missingBytes(); n > 0 {
		return fmt.Errorf("%d of 256 bytes have no token (byte_fallback): llama.cpp aborts at a character that is not a token", n)
	}
	return nil
}

// setSpacePrefix says whether a space goes before the text; tokenizer_config.json may decide otherwise than the model.
// GGUF readers do it unless they are told not to.
func (c *Checkpoint) setSpacePrefix(f *tokenizerFiles, m tokenizerModel, byModel bool) error {
	prefix := f.config.Bool("add_prefix_space", byModel)
	if f.config.Err() != nil {
		return f.config.Err()
	}
	if !prefix || f.config.Has("add_prefix_space") || m.quirks.PrefixAlways {
		c.md.Set("tokenizer.ggml.add_space_prefix", prefix)
	}
	return nil
}
