package tendril

import _ "embed"

// CRDs are the CustomResourceDefinitions of these kinds, a YAML document each.
//
//go:embed crds.yaml
var CRDs string
