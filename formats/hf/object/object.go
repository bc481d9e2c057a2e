// Package object reads JSON objects of a checkpoint folder, config.json above all: with bounds, with messages that name the
// file, the member and its value, and with a note of which members were read.
package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/llmq/llmq/internal/sniff"
)

// Object reads the members of a JSON object. The first failure, which names the file, the key and the value, is kept and
// later reads return zero. A nil Object has no members.
type Object struct {
	File string

	prefix string // of the keys, in messages: "rope_scaling."
	fields map[string]json.RawMessage
	read   map[string]bool
	inner  map[string]*Object // members that were read as objects
	err    *error
}

// Parse reads a file that holds one JSON object. A byte order mark before it is skipped. NaN, Infinity and -Infinity, which
// Python's json module writes, are taken; a member that is one of them is no number.
func Parse(file string, data []byte) (*Object, error) {
	o := New(file)
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	err := json.Unmarshal(data, &o.fields)
	if err != nil {
		if what := sniff.Impostor(data); what != "" {
			return nil, fmt.Errorf("%s: it is %s", file, what)
		}
		if quoted := quoteNonNumbers(data); quoted != nil {
			o.fields = nil
			err = json.Unmarshal(quoted, &o.fields)
		}
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return nil, fmt.Errorf("%s: not a JSON object, but of the kind %s", file, wrong.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: not a JSON object: %w", file, err)
	}
	if o.fields == nil {
		return nil, fmt.Errorf("%s: not a JSON object: null", file)
	}
	return o, nil
}

// New returns an object without members, whose failures are those of a file.
func New(file string) *Object { return &Object{File: file, err: new(error), read: map[string]bool{}} }

// nonNumbers are what Python's json module writes for floats that JSON has no numbers for.
var nonNumbers = [][]byte{[]byte("NaN"), []byte("Infinity"), []byte("-Infinity")}

// quoteNonNumbers makes strings of non-numbers outside strings, so that a member that is not read does no harm, and one
// that is read as a number is refused with its value. It returns nil if there are none.
func quoteNonNumbers(data []byte) []byte {
	var out []byte
	from := 0 // what is not yet in out
	inString := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString || c != 'N' && c != 'I' && c != '-':
		default:
			for _, word := range nonNumbers {
				if bytes.HasPrefix(data[i:], word) {
					out = append(append(append(append(out, data[from:i]...), '"'), word...), '"')
					from = i + len(word)
					i = from - 1
					break
				}
			}
		}
	}
	if from == 0 {
		return nil
	}
	return append(out, data[from:]...)
}

// Err is the first failure.
func (o *Object) Err() error {
	if o == nil {
		return nil
	}
	return *o.err
}

// Forget makes the next failure the first, once this one has been dealt with.
func (o *Object) Forget() { *o.err = nil }

// Path is the file and the full name of a member, for messages.
func (o *Object) Path(key string) string { return fmt.Sprintf("%s: %s%s", o.File, o.prefix, key) }

// Keys lists the names of all members, sorted.
func (o *Object) Keys() []string {
	if o == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(o.fields))
}

// Over returns the members of o, and those of base that o does not have. Failures are those of base.
func (o *Object) Over(base *Object) *Object {
	all := &Object{File: base.File, prefix: base.prefix, fields: maps.Clone(base.fields), read: map[string]bool{}, err: base.err}
	maps.Copy(all.fields, o.fields)
	return all
}

// Unread lists the members that nothing has asked for and that are not null, sorted; of objects that were read theirs, under
// both names: "rope_scaling.factor".
func (o *Object) Unread() []string {
	var names []string
	for key, member := range o.inner {
		for _, name := range member.Unread() {
			names = append(names, key+"."+name)
		}
	}
	for name := range o.fields {
		if !o.read[name] {
			if _, ok := o.peek(name); ok {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Equal says whether two objects have the same members, written alike.
func (o *Object) Equal(other *Object) bool {
	return maps.EqualFunc(o.fields, other.fields, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
}

// ReadAll counts all members as read.
func (o *Object) ReadAll() {
	for name := range o.fields {
		o.read[name] = true
	}
}

// Present says whether a member is there, be it null.
func (o *Object) Present(key string) bool {
	if o == nil {
		return false
	}
	_, ok := o.fields[key]
	o.read[key] = true
	return ok
}

// peek is Get without noting that the member was read.
func (o *Object) peek(key string) (json.RawMessage, bool) {
	v, ok := o.fields[key]
	return v, ok && !bytes.Equal(bytes.TrimSpace(v), []byte("null"))
}

// Excerpt is a member's text as it stands in the file, shortened, for messages.
func (o *Object) Excerpt(key string) string { return excerpt(o.fields[key]) }

// Fail notes what is wrong with a member, unless something else was before.
func (o *Object) Fail(key, format string, args ...any) {
	if *o.err == nil {
		*o.err = fmt.Errorf("%s: %s%s: %s", o.File, o.prefix, key, fmt.Sprintf(format, args...))
	}
}

// Get returns a member's text; null counts as absent.
func (o *Object) Get(key string) (json.RawMessage, bool) {
	if o == nil {
		return nil, false
	}
	o.read[key] = true
	return o.peek(key)
}

func (o *Object) Has(key string) bool {
	_, ok := o.Get(key)
	return ok
}

// excerpt shortens a value for a message.
func excerpt(v []byte) string {
	const limit = 60
	if len(v) > limit {
		return string(v[:limit]) + "…"
	}
	return string(v)
}

// Int returns a number in [lo,hi], or absent if there is none. absent < 0 makes the key required.
func (o *Object) Int(key string, absent, lo, hi int) int {
	v, ok := o.Get(key)
	if !ok && absent < 0 {
		o.Fail(key, "is missing")
		return 0
	}
	if !ok {
		return absent
	}
	var n json.Number
	if err := json.Unmarshal(v, &n); err != nil || v[0] == '"' {
		o.Fail(key, "is %s, want an integer", excerpt(v))
		return 0
	}
	i, err := n.Int64()
	if err != nil {
		o.Fail(key, "is %s, want an integer", excerpt(v))
		return 0
	}
	if i < int64(lo) || i > int64(hi) {
		o.Fail(key, "is %s, want %d to %d", excerpt(v), lo, hi)
		return 0
	}
	return int(i)
}

// Float returns a number in (lo,hi], or absent if there is none. An absent NaN makes the key required.
func (o *Object) Float(key string, absent, lo, hi float64) float64 {
	v, ok := o.Get(key)
	if !ok {
		if math.IsNaN(absent) {
			o.Fail(key, "is missing")
		}
		return absent
	}
	var f float64
	if err := json.Unmarshal(v, &f); err != nil {
		o.Fail(key, "is %s, want a number", excerpt(v))
		return 0
	}
	if !(f > lo && f <= hi) {
		o.Fail(key, "is %s, want more than %g, at most %g", excerpt(v), lo, hi)
		return 0
	}
	return f
}

func (o *Object) String(key, absent string) string {
	v, ok := o.Get(key)
	if !ok {
		return absent
	}
	var s string
	if json.Unmarshal(v, &s) != nil {
		o.Fail(key, "is %s, want a string", excerpt(v))
	}
	return s
}

func (o *Object) Bool(key string, absent bool) bool {
	v, ok := o.Get(key)
	if !ok {
		return absent
	}
	var b bool
	if json.Unmarshal(v, &b) != nil {
		o.Fail(key, "is %s, want true or false", excerpt(v))
	}
	return b
}

// Object returns a member that is an object, nil if it is absent.
func (o *Object) Object(key string) *Object {
	v, ok := o.Get(key)
	if !ok {
		return nil
	}
	if member := o.inner[key]; member != nil {
		return member
	}
	member := &Object{File: o.File, prefix: o.prefix + key + ".", read: map[string]bool{}, err: o.err}
	if json.Unmarshal(v, &member.fields) != nil {
		o.Fail(key, "is %s, want an object", excerpt(v))
		return nil
	}
	if o.inner == nil {
		o.inner = map[string]*Object{}
	}
	o.inner[key] = member
	return member
}

// List returns the elements of a member that is a list of objects, none if it is absent.
func (o *Object) List(key string) []*Object {
	v, ok := o.Get(key)
	if !ok {
		return nil
	}
	var raw []map[string]json.RawMessage
	if json.Unmarshal(v, &raw) != nil {
		o.Fail(key, "is %s, want a list of objects", excerpt(v))
		return nil
	}
	elements := make([]*Object, len(raw))
	for i, fields := range raw {
		elements[i] = &Object{File: o.File, prefix: fmt.Sprintf("%s%s[%d].", o.prefix, key, i), fields: fields,
			read: map[string]bool{}, err: o.err}
	}
	return elements
}

// Ints returns the elements of a member that is a list of integers in [lo,hi], nil if it is absent.
func (o *Object) Ints(key string, lo, hi int) []int {
	v, ok := o.Get(key)
	if !ok {
		return nil
	}
	var list []int
	if json.Unmarshal(v, &list) != nil {
		o.Fail(key, "is %s, want a list of integers", excerpt(v))
		return nil
	}
	for _, n := range list {
		if n < lo || n > hi {
			o.Fail(key, "has %d, want %d to %d", n, lo, hi)
			return nil
		}
	}
	return list
}

// Floats returns the elements of a member that is a list of numbers, nil if it is absent.
func (o *Object) Floats(key string) []float64 {
	v, ok := o.Get(key)
	if !ok {
		return nil
	}
	var list []float64
	if json.Unmarshal(v, &list) != nil {
		o.Fail(key, "is %s, want a list of numbers", excerpt(v))
	}
	return list
}

// Strings returns the elements of a member that is a list of strings, nil if it is absent.
func (o *Object) Strings(key string) []string {
	v, ok := o.Get(key)
	if !ok {
		return nil
	}
	var list []string
	if json.Unmarshal(v, &list) != nil {
		o.Fail(key, "is %s, want a list of strings", excerpt(v))
	}
	return list
}

// IsList says whether a member is a list.
func (o *Object) IsList(key string) bool {
	v, ok := o.Get(key)
	return ok && bytes.HasPrefix(bytes.TrimSpace(v), []byte("["))
}
