package store

import "time"

// Standing is how far a run is. The JSON names are part of the command line's interface.
type Standing struct {
	Model  string `json:"model"`
	Output string `json:"output"` // "" of evaluations and profiles, which have no method either
	Method string `json:"method"`
	Type   string `json:"type"`
	Phase  string `json:"phase"`
	// Run counts how often the run has started over with other types.
	Run    int `json:"run"`
	Layers int `json:"layers"`
	// LayerSeconds is how long each layer that is done took, and the head behind them.
	LayerSeconds []float64 `json:"layer_seconds"`
	Head         bool      `json:"head"` // is quantized too, after the layers
	// Expected is how many seconds all that was left when the phase began was predicted to take, while no layer is done; 0: nobody has.
	Expected float64 `json:"expected_seconds,omitempty"`
	// Shards: what is counted are shards of the text, not layers.
	Shards bool `json:"shards,omitempty"`
}

// Worker is one of the processes that take part in a run on many machines. The JSON names are part of the command line's interface.
type Worker struct {
	Name  string    `json:"name"`
	Since time.Time `json:"since"` // when it came
	Unit  string    `json:"unit"`  // of work that it is at; "" if it waits
	Done  int       `json:"done"`  // units
}

// Phases of a run, in order; evaluations and profiles have one.
const (
	PhaseTypes     = "types"     // measuring what types do to tensors
	PhaseGradients = "gradients" // how outputs matter to the predictions
	PhaseLayers    = "layers"    // quantizing the layers
	PhaseHead      = "head"      // quantizing the head
	PhaseValidate  = "validate"  // comparing the file to the original
	PhaseFinish    = "finish"    // giving the file its name, then clearing the folder
	PhaseEvaluate  = "evaluate"
	PhaseProfile   = "profile"
	PhaseDone      = "done"
)

// Left is the number of layers that are yet to be done, and how long they will take: as long each as the last ones, and before one is done as
// long as was predicted. ok is false where nothing tells.
func (s *Standing) Left() (layers int, d time.Duration, ok bool) {
	layers = max(0, s.Layers-len(s.LayerSeconds))
	const last = 8
	recent := s.LayerSeconds[max(0, len(s.LayerSeconds)-last):]
	if len(recent) == 0 {
		return layers, time.Duration(s.Expected * float64(time.Second)), s.Expected > 0
	}
	var sum float64
	for _, t := range recent {
		sum += t
	}
	return layers, time.Duration(float64(layers) * sum / float64(len(recent)) * float64(time.Second)), true
}

// Done says whether the run is over.
func (s *Standing) Done() bool { return s.Phase == PhaseDone }
