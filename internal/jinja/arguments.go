package jinja

import (
	"fmt"
	"slices"
	"strings"
)

// arguments are a call's.
type arguments struct {
	name   string // of what is called, for errors
	args   []any
	names  []string
	values []any
}

// bind distributes the arguments among parameters; those that are not given are missing. "name?" is optional.
func (a *arguments) bind(params ...string) ([]any, error) {
	out := make([]any, len(params))
	if len(a.args) > len(params) {
		return nil, fmt.Errorf("%s takes at most %d arguments, not %d", a.name, len(params), len(a.args))
	}
	for i, p := range params {
		name, optional := strings.CutSuffix(p, "?")
		k := slices.Index(a.names, name)
		switch {
		case i < len(a.args) && k >= 0:
			return nil, fmt.Errorf("%s: two values for %s", a.name, name)
		case i < len(a.args):
			out[i] = a.args[i]
		case k >= 0:
			out[i] = a.values[k]
		case !optional:
			return nil, fmt.Errorf("%s wants the argument %s", a.name, name)
		default:
			out[i] = missing
		}
	}
	for _, name := range a.names {
		if !slices.Contains(params, name) && !slices.Contains(params, name+"?") {
			return nil, fmt.Errorf("%s has no argument %s", a.name, name)
		}
	}
	return out, nil
}

type missingType struct{}

// missing is an argument that was not given.
var missing = &missingType{}
