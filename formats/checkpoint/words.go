package checkpoint

import (
	"encoding/binary"
	"fmt"
)

// words are int32s that hold small unsigned integers, the first in the lowest bits.
type words []byte

func (w words) word(i int) uint32 { return binary.LittleEndian.Uint32(w[4*i:]) }

// bit returns the width-bit integer that begins at a bit of the words first, first+stride, …: an integer may lie across two.
func (w words) bit(first, stride, bit, width int) uint32 {
	i, shift := bit/32, bit%32
	v := w.word(first+i*stride) >> shift
	if shift+width > 32 {
		v |= w.word(first+(i+1)*stride) << (32 - shift)
	}
	return v & (1<<width - 1)
}

// groupOf says to which group of columns each column belongs: by a g_idx, or by its place.
type groupOf struct {
	index  words // nil: by place
	size   int
	groups int
}

// run returns the group of column i, and where the columns of it that follow end, of n.
func (g groupOf) run(i, n int) (group, end int, err error) {
	if g.index == nil {
		group = i / g.size
		return group, min((group+1)*g.size, n), nil
	}
	v := int32(g.index.word(i))
	if v < 0 || int(v) >= g.groups {
		return 0, 0, fmt.Errorf("g_idx: column %d belongs to group %d of %d", i, v, g.groups)
	}
	return int(v), i + 1, nil
}

// groupSize finds how many of n columns share one of so many groups: a size that is named, else equal shares.
func groupSize(n, groups, named int) (int, error) {
	switch {
	case groups < 1 || n < 1:
		return 0, fmt.Errorf("%d groups of %d columns", groups, n)
	case named > 0 && ceil(n, named) == groups:
		return named, nil
	case n%groups == 0:
		return n / groups, nil
	}
	return 0, fmt.Errorf("%d columns in %d groups, neither equal ones nor of %d columns", n, groups, named)
}
