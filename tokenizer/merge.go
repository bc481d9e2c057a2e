package tokenizer

import "unicode/utf8"

// symbol is a stretch of text during merging; symbols form a list in the order of the text.
type symbol struct {
	id         int32 // its token, −1 if it has none
	size       int   // bytes; 0 once it is part of the symbol before it
	start      int
	prev, next int // −1 at the ends
}

// candidate is a pair of neighbours that could become one token.
type candidate struct {
	priority    float64 // the least goes first; among equals, the leftmost
	left, right int
	size        int // of both together; when it no longer holds, one of them has changed
	id          int32
}

func (c *candidate) before(d *candidate) bool {
	return c.priority < d.priority || c.priority == d.priority && c.left < d.left
}

// merger joins neighbouring symbols, always the pair of the least priority, until no pair is left that makes a token.
// Both schemes merge so; they differ in what makes a priority.
type merger struct {
	symbols []symbol
	heap    []candidate
	// pair returns the token that two neighbouring symbols make, and its priority.
	pair func(left, right *symbol) (id int32, priority float64, ok bool)
}

func (m *merger) reset() { m.symbols, m.heap = m.symbols[:0], m.heap[:0] }

// add appends a symbol of size bytes to the text.
func (m *merger) add(id int32, size int) {
	s := symbol{id: id, size: size, prev: len(m.symbols) - 1, next: -1}
	if s.prev >= 0 {
		last := &m.symbols[s.prev]
		last.next = len(m.symbols)
		s.start = last.start + last.size
	}
	m.symbols = append(m.symbols, s)
}

func (m *merger) merge() {
	for i := 1; i < len(m.symbols); i++ {
		m.propose(i-1, i)
	}
	for len(m.heap) > 0 {
		c := m.pop()
		left, right := &m.symbols[c.left], &m.symbols[c.right]
		if left.size == 0 || right.size == 0 || left.size+right.size != c.size {
			continue
		}
		left.id, left.size, left.next = c.id, c.size, right.next
		right.size = 0
		if right.next >= 0 {
			m.symbols[right.next].prev = c.left
		}
		m.propose(left.prev, c.left)
		m.propose(c.left, left.next)
	}
}

func (m *merger) propose(left, right int) {
	if left < 0 || right < 0 {
		return
	}
	l, r := &m.symbols[left], &m.symbols[right]
	if id, priority, ok := m.pair(l, r); ok {
		m.push(candidate{priority, left, right, l.size + r.size, id})
	}
}

// push and pop keep heap a binary heap, the first candidate on top. They stand in for container/heap, whose interface
// allocates for every element.
func (m *merger) push(c candidate) {
	m.heap = append(m.heap, c)
	i := len(m.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !c.before(&m.heap[parent]) {
			break
		}
		m.heap[i] = m.heap[parent]
		i = parent
	}
	m.heap[i] = c
}

func (m *merger) pop() candidate {
	top := m.heap[0]
	n := len(m.heap) - 1
	c := m.heap[n]
	m.heap = m.heap[:n]
	i := 0
	for {
		child := 2*i + 1
		if child >= n {
			break
		}
		if child+1 < n && m.heap[child+1].before(&m.heap[child]) {
			child++
		}
		if !m.heap[child].before(&c) {
			break
		}
		m.heap[i] = m.heap[child]
		i = child
	}
	if n > 0 {
		m.heap[i] = c
	}
	return top
}

// mergeCharacters merges text from its characters on, ids being those of tokens, and appends what it comes to. A character
// that is no token is spelled in bytes.
func (m *merger) mergeCharacters(dst []int32, text string, ids map[string]int32, byteID *[256]int32, unk int32) []int32 {
	for i := 0; i < len(text); {
		_, size := utf8.DecodeRuneInString(text[i:])
		id, ok := ids[text[i:i+size]]
		if !ok {
			id = -1
		}
		m.add(id, size)
		i += size
	}
	m.merge()
	for i := range m.symbols {
		switch s := &m.symbols[i]; {
		case s.size == 0:
		case s.id >= 0:
			dst = append(dst, s.id)
		default:
			dst = spell(dst, text[s.start:s.start+s.size], byteID, unk)
		}
	}
	return dst
}

// spell appends a character's bytes, or the unknown token (nothing if it is −1) where the vocabulary lacks one of them.
func spell(dst []int32, char string, byteID *[256]int32, unk int32) []int32 {
	from := len(dst)
	for i := range len(char) {
		id := byteID[char[i]]
		if id < 0 {
			dst = dst[:from]
			if unk >= 0 {
				dst = append(dst, unk)
			}
			return dst
		}
		dst = append(dst, id)
	}
	return dst
}
