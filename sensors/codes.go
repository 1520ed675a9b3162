package sensors

import "github.com/sensor-engine/engine/specs"

// The codes of the diagnostics this package makes.
const (
	// CodeReservedName: a dependency whose name means something else in
	// expressions, or cannot be written there.
	CodeReservedName specs.Code = "dependency-reserved-name"
	// CodeTooMany: more dependencies than a sensor can have.
	CodeTooMany specs.Code = "sensor-too-many-dependencies"
	// CodeNoDependency: a condition that refers to no dependency.
	CodeNoDependency specs.Code = "condition-without-dependency"
	// CodeAbsentAfter: a dependency that is declared absent after one that
	// cannot begin its time.
	CodeAbsentAfter specs.Code = "absent-after"
	// CodeNeverArrives: a template that reads a dependency its trigger's
	// condition does not wait for.
	CodeNeverArrives specs.Code = "template-never-arrives"
	// CodeUnusedDependency: a dependency no condition refers to.
	CodeUnusedDependency specs.Code = "dependency-unused"
)
