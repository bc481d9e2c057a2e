package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The layout (github.com/huggingface/safetensors): the header's length as a little-endian uint64, the header as a JSON
// object, and the tensors' data without gaps; data_offsets count from the header's end.
const (
	lengthBytes    = 8
	maxHeaderBytes = 100_000_000 // the format's own limit
	maxDims        = 16          // no model comes near; it bounds what the JSON decoder makes of a header
	metadataKey    = "__metadata__"
)

// A FormatError reports that the input is not a valid checkpoint.
type FormatError string

func (e FormatError) Error() string { return "safetensors: " + string(e) }

// An UnsupportedError reports that the input uses a valid but unimplemented feature.
type UnsupportedError string

func (e UnsupportedError) Error() string { return "safetensors: " + string(e) }

func formatErrorf(format string, args ...any) error { return FormatError(fmt.Sprintf(format, args...)) }

// entry is one tensor of a header.
type entry struct {
	name   string
	dtype  DType
	shape  []int
	lo, hi uint64 // of the data, from the header's end
	data   []byte // a view of the file
}

// header is what a shard's header says.
type header struct {
	entries []entry
	// beyondLibrary tells that the library would refuse what is valid here: a type that it lacks, "__metadata__": null.
	beyondLibrary bool
}

// readHeader checks a shard's header and lists its tensors by their place in the data.
//
// It comes before the library's own validation, and says which tensor is wrong and by how much. It also finds what the
// library would let pass (a name that appears twice, dimensions beyond an int) or would spend much memory on (long or
// nested lists in place of a shape).
func readHeader(name string, file []byte) (header, error) {
	if len(file) < lengthBytes {
		return header{}, formatErrorf("%s: %d bytes are too few for a header's length", name, len(file))
	}
	n := binary.LittleEndian.Uint64(file)
	room := uint64(len(file) - lengthBytes)
	switch {
	case n > math.MaxInt64:
		return header{}, formatErrorf("%s: the header's length is %d, negative", name, int64(n))
	case n > room:
		return header{}, formatErrorf("%s: the header's length is %d, but %d bytes follow", name, n, room)
	case n > maxHeaderBytes:
		return header{}, formatErrorf("%s: the header's length is %d, more than %d", name, n, maxHeaderBytes)
	}
	text := file[lengthBytes : lengthBytes+n]
	if len(text) == 0 || text[0] != '{' {
		return header{}, formatErrorf("%s: the header of %d bytes is not a JSON object", name, n)
	}
	h, err := parseHeader(text)
	if err == nil {
		err = checkEntries(h.entries, room-n)
	}
	if err == nil {
		data := file[lengthBytes+n:]
		for i := range h.entries {
			e := &h.entries[i]
			e.data = data[e.lo:e.hi:e.hi]
		}
		return h, nil
	}
	var u UnsupportedError
	if errors.As(err, &u) {
		return header{}, UnsupportedError(name + ": " + string(u))
	}
	return header{}, formatErrorf("%s: %v", name, err)
}

// parseHeader reads the JSON object token by token.
func parseHeader(text []byte) (h header, err error) {
	p := newObjectReader(text)
	err = p.object(func(key string) error {
		if key == metadataKey {
			if p.null() { // the Rust library's Option: none
				h.beyondLibrary = true
				return nil
			}
			return p.within(metadataKey, p.object(func(key string) error {
				_, err := p.string()
				return p.within(fmt.Sprintf("%.200q", key), err)
			}))
		}
		e, err := p.entry()
		e.name = key
		if _, lacks := narrow[e.dtype]; lacks {
			h.beyondLibrary = true
		}
		h.entries = append(h.entries, e)
		return p.within(fmt.Sprintf("tensor %.200q", key), err)
	})
	if err == nil {
		err = p.end()
	}
	return h, err
}

// checkEntries sorts the tensors by their data, which must fill dataBytes without gaps.
func checkEntries(entries []entry, dataBytes uint64) error {
	for i := range entries {
		if err := entries[i].check(dataBytes); err != nil {
			return err
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(a.hi, b.hi), strings.Compare(a.name, b.name))
	})
	end := uint64(0)
	for i, e := range entries {
		if e.lo < end {
			return fmt.Errorf("tensors %.200q and %.200q overlap: offsets [%d %d] and [%d %d]",
				entries[i-1].name, e.name, entries[i-1].lo, entries[i-1].hi, e.lo, e.hi)
		}
		if e.lo > end {
			return fmt.Errorf("tensor %.200q: offsets [%d %d] leave %d bytes before it unused",
				e.name, e.lo, e.hi, e.lo-end)
		}
		end = e.hi
	}
	if end != dataBytes {
		return fmt.Errorf("the tensors need %d bytes of data, the file has %d", end, dataBytes)
	}
	return nil
}

// check holds a tensor's offsets against its shape and the data's length.
func (e *entry) check(dataBytes uint64) error {
	need, rest, ok := size(e.dtype, e.shape)
	switch {
	case !ok || need > math.MaxInt64:
		return fmt.Errorf("tensor %.200q: %s %d: more bytes than fit 63 bits", e.name, e.dtype, e.shape)
	case rest != 0:
		return fmt.Errorf("tensor %.200q: %s %d: %d bits are no whole bytes", e.name, e.dtype, e.shape, 8*need+rest)
	case e.hi < e.lo:
		return fmt.Errorf("tensor %.200q: offsets [%d %d] are inverted", e.name, e.lo, e.hi)
	case e.hi-e.lo != need:
		return fmt.Errorf("tensor %.200q: %s %d needs %d bytes, offsets give %d",
			e.name, e.dtype, e.shape, need, e.hi-e.lo)
	case e.hi > dataBytes:
		return fmt.Errorf("tensor %.200q: offsets [%d %d] are past the end of the data, %d bytes",
			e.name, e.lo, e.hi, dataBytes)
	}
	return nil
}

// objectReader walks through JSON of which only the outline is trusted.
type objectReader struct {
	dec  *json.Decoder
	text []byte
}

func newObjectReader(b []byte) *objectReader {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return &objectReader{dec, b}
}

func (p *objectReader) within(what string, err error) error {
	var u UnsupportedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &u):
		return UnsupportedError(what + ": " + string(u))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// null reads the value that follows if it is null, and nothing otherwise.
func (p *objectReader) null() bool {
	if !bytes.HasPrefix(bytes.TrimLeft(p.text[p.dec.InputOffset():], ": \t\r\n"), []byte("null")) {
		return false
	}
	t, err := p.token()
	return err == nil && t == nil
}

// token returns the next token; the end of the input is an error.
func (p *objectReader) token() (json.Token, error) {
	t, err := p.dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("invalid JSON after byte %d: %w", p.dec.InputOffset(), err)
	}
	return t, nil
}

func (p *objectReader) expect(d json.Delim, what string) error {
	t, err := p.token()
	if err == nil && t != d {
		err = fmt.Errorf("not %s", what)
	}
	return err
}

// object reads an object and calls f at each of its values, which f must read. A key that appears twice is an error.
func (p *objectReader) object(f func(key string) error) error {
	if err := p.expect('{', "an object"); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for p.dec.More() {
		key, err := p.string()
		if err != nil {
			return err
		}
		if seen[key] {
			return fmt.Errorf("%.200q appears twice", key)
		}
		seen[key] = true
		if err := f(key); err != nil {
			return err
		}
	}
	return p.expect('}', "the end of the object")
}

// end demands that nothing but space follows.
func (p *objectReader) end() error {
	switch t, err := p.dec.Token(); {
	case err == io.EOF:
		return nil
	case err != nil:
		return fmt.Errorf("after the object: %w", err)
	default:
		return fmt.Errorf("unexpected %.40v after the object", t)
	}
}

func (p *objectReader) string() (string, error) {
	t, err := p.token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%.40v is not a string", t)
	}
	return s, nil
}

// naturals reads a list of at most limit numbers.
func (p *objectReader) naturals(what string, limit int) ([]uint64, error) {
	if err := p.expect('[', "a list"); err != nil {
		return nil, p.within(what, err)
	}
	var list []uint64
	for p.dec.More() {
		t, err := p.token()
		if err != nil {
			return nil, err
		}
		n, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s: %.40v is not a number", what, t)
		}
		v, err := strconv.ParseUint(n.String(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %.40s is not a natural number of 64 bits", what, n)
		}
		if len(list) == limit {
			return nil, fmt.Errorf("%s: more than %d numbers", what, limit)
		}
		list = append(list, v)
	}
	return list, p.expect(']', "the end of the list")
}

// entry reads a tensor's dtype, shape and data_offsets.
func (p *objectReader) entry() (e entry, err error) {
	var dtype, shape, offsets bool
	err = p.object(func(key string) error {
		switch key {
		case "dtype":
			dtype = true
			s, err := p.string()
			if err != nil {
				return p.within(key, err)
			}
			if e.dtype = DType(s); e.dtype.Bits() == 0 {
				return UnsupportedError(fmt.Sprintf("dtype %.40q is not supported", s))
			}
		case "shape":
			shape = true
			dims, err := p.naturals(key, maxDims)
			if err != nil {
				return err
			}
			for _, n := range dims {
				if n > math.MaxInt {
					return fmt.Errorf("shape: dimension %d is too large", n)
				}
				e.shape = append(e.shape, int(n))
			}
		case "data_offsets":
			offsets = true
			list, err := p.naturals(key, 2)
			if err != nil {
				return err
			}
			if len(list) != 2 {
				return fmt.Errorf("data_offsets: %d numbers, not 2", len(list))
			}
			e.lo, e.hi = list[0], list[1]
		default:
			return fmt.Errorf("unknown key %.200q", key)
		}
		return nil
	})
	switch {
	case err != nil:
	case !dtype:
		err = errors.New("no dtype")
	case !shape:
		err = errors.New("no shape")
	case !offsets:
		err = errors.New("no data_offsets")
	}
	return e, err
}
