package bus

// The types of the events that tell how the calls of a function ended. Their
// EventSource is [SourceFunction].
const (
	TypeFunctionSucceeded = "engine.function.succeeded"
	TypeFunctionFailed    = "engine.function.failed"
)

// The extensions of such an event, which say what was called: the sensor, its
// trigger, the correlation key, the workflow, and the place in a fan-out and
// its size. What is not set is left out.
const (
	ExtSensor  = "enginesensor"
	ExtTrigger = "enginetrigger"
	ExtKey     = "enginekey"
	ExtFlow    = "engineflow"
	ExtItem    = "engineitem"
	ExtItems   = "engineitems"
)
