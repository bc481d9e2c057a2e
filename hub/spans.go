package hub

import (
	"cmp"
	"slices"
)

// span is bytes lo to hi of a file.
type span struct{ lo, hi int64 }

// spans are bytes of a file: in order, and neither overlapping nor touching each other.
type spans []span

// with returns s and bytes lo to hi.
func (s spans) with(lo, hi int64) spans {
	if lo >= hi {
		return s
	}
	i, _ := slices.BinarySearchFunc(s, lo, func(a span, lo int64) int { return cmp.Compare(a.hi, lo) }) // the first that touches
	j := i
	for ; j < len(s) && s[j].lo <= hi; j++ {
		lo, hi = min(lo, s[j].lo), max(hi, s[j].hi)
	}
	return slices.Replace(s, i, j, span{lo, hi})
}

// without returns s less bytes lo to hi.
func (s spans) without(lo, hi int64) spans {
	if lo >= hi {
		return s
	}
	var rest spans
	for _, a := range s {
		if b := (span{a.lo, min(a.hi, lo)}); b.lo < b.hi {
			rest = append(rest, b)
		}
		if b := (span{max(a.lo, hi), a.hi}); b.lo < b.hi {
			rest = append(rest, b)
		}
	}
	return rest
}

// less returns s less those of t.
func (s spans) less(t spans) spans {
	for _, a := range t {
		s = s.without(a.lo, a.hi)
	}
	return s
}

// meets says whether some of a is in s.
func (a span) meets(s spans) bool { return spans{a}.less(s).bytes() < a.hi-a.lo }

// bytes is how many there are.
func (s spans) bytes() (n int64) {
	for _, a := range s {
		n += a.hi - a.lo
	}
	return n
}
