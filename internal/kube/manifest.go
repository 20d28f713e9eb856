package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/api/tendril"
)

// Object is one object of a manifest: decoded, known to have no unknown field, not yet checked for meaning.
type Object struct {
	Kind      string
	Namespace string // empty for cluster-wide kinds
	Name      string
	File      string
	Document  int    // counted from 1; 0: the source is not a file of documents
	JSON      []byte // canonical: sorted fields, without status and what the API server keeps for itself

	value any // pointer to the kind's Go type
}

// String names the object as kubectl would: kind namespace/name.
func (o *Object) String() string {
	if o.Namespace == "" {
		return strings.TrimSpace(o.Kind + " " + o.Name)
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// kind is a kind of object that tendril reads.
type kind struct {
	apiVersion string
	name       string
	namespaced bool
	typ        reflect.Type
}

// kinds lists them all, in the order in which messages print them.
// Other versions of these kinds (NetworkPolicy of extensions/v1beta1, EndpointSlice of v1beta1) are gone from every Kubernetes that is
// still maintained, and are refused by name rather than read as if they were the same.
func kinds() []kind {
	return []kind{
		{"v1", "Namespace", false, reflect.TypeFor[corev1.Namespace]()},
		{"v1", "Node", false, reflect.TypeFor[corev1.Node]()},
		{"v1", "Pod", true, reflect.TypeFor[corev1.Pod]()},
		{tendril.APIVersion, tendril.KindLoadBalancerPool, false, reflect.TypeFor[tendril.LoadBalancerPool]()},
		{tendril.APIVersion, tendril.KindEgressGateway, false, reflect.TypeFor[tendril.EgressGateway]()},
		{"v1", "Service", true, reflect.TypeFor[corev1.Service]()},
		{"discovery.k8s.io/v1", "EndpointSlice", true, reflect.TypeFor[discoveryv1.EndpointSlice]()},
		{cilium.APIVersion, cilium.KindCIDRGroup, false, reflect.TypeFor[cilium.CIDRGroup]()},
		{cilium.APIVersionAlpha, cilium.KindCIDRGroup, false, reflect.TypeFor[cilium.CIDRGroup]()},
		{"networking.k8s.io/v1", "NetworkPolicy", true, reflect.TypeFor[networkingv1.NetworkPolicy]()},
		{cilium.APIVersion, cilium.KindNetworkPolicy, true, reflect.TypeFor[cilium.NetworkPolicy]()},
		{cilium.APIVersion, cilium.KindClusterwideNetworkPolicy, false, reflect.TypeFor[cilium.NetworkPolicy]()},
		{policyGroup + "v1alpha2", kindClusterNetworkPolicy, false, reflect.TypeFor[v1alpha2.ClusterNetworkPolicy]()},
		{policyGroup + "v1alpha1", kindAdminNetworkPolicy, false, reflect.TypeFor[v1alpha1.AdminNetworkPolicy]()},
		{policyGroup + "v1alpha1", kindBaselineAdminNetworkPolicy, false, reflect.TypeFor[v1alpha1.BaselineAdminNetworkPolicy]()},
	}
}

// Decode reads the objects of a manifest, YAML or JSON, of any number of documents. A list (v1 List) stands for its
// items. The error is a Mistakes with everything wrong at this stage; objects without mistakes are returned as well.
// Decode proves the shape, not the meaning: that a range is a range is for Records to say. Only an object whose shape is
// wrong has its meaning checked here as well, since Records will never see it.
func Decode(file string, data []byte) ([]*Object, error) {
	var objects []*Object
	var mistakes Mistakes
	for i, text := range documents(data) {
		value, err := parse(text)
		if err != nil {
			mistakes = append(mistakes, &Mistake{File: file, Document: i + 1, Err: err})
			continue
		}
		for _, item := range items(value) {
			object, wrong := decodeObject(item, file, i+1)
			mistakes = append(mistakes, wrong...)
			if len(wrong) == 0 {
				objects = append(objects, object)
			}
		}
	}
	return objects, mistakes.orNil()
}

// documents splits a YAML stream at its markers ("---", "..."), so that one broken document does not hide the others'
// mistakes. A document's number is its place in the file; comments ahead of the first marker are no document.
func documents(data []byte) [][]byte {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var docs [][]byte
	var doc []byte
	begun := false
	for line := range bytes.Lines(data) {
		if !isMarker(line) {
			doc = append(doc, line...)
			begun = begun || isContent(line)
			continue
		}
		if begun {
			docs = append(docs, doc)
		}
		begun, doc = true, append([]byte("   "), line[3:]...)
	}
	return append(docs, doc)
}

// isMarker tells lines that end a document (YAML 1.2, 9.1.2); what follows "---" on its line belongs to the next one.
func isMarker(line []byte) bool {
	if !bytes.HasPrefix(line, []byte("---")) && !bytes.HasPrefix(line, []byte("...")) {
		return false
	}
	return len(line) == 3 || bytes.IndexByte([]byte(" \t\r\n"), line[3]) >= 0
}

// isContent tells lines that make a document out of blank lines and comments.
func isContent(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) > 0 && line[0] != '#'
}

// parse turns one YAML document into JSON values with numbers as written; nil if it holds nothing.
// sigs.k8s.io/yaml, which reads YAML as Kubernetes does, ends at a document's first value without a word. So the document
// is read twice: once by a decoder that sees a second value, once into JSON whose numbers stay text.
func parse(text []byte) (any, error) {
	decoder := yamlv2.NewDecoder(bytes.NewReader(text))
	decoder.SetStrict(true)
	var first, second any
	if err := decoder.Decode(&first); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, yamlError(err)
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value in a document; put a line of --- between objects")
	}
	text, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, yamlError(err)
	}
	numbers := json.NewDecoder(bytes.NewReader(text))
	numbers.UseNumber()
	var value any
	if err := numbers.Decode(&value); err != nil {
		return nil, fmt.Errorf("JSON of the document: %w", err)
	}
	return value, nil
}

// yamlError puts the parser's message on one line.
func yamlError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n")
	text = regexp.MustCompile(`\s*\n\s*`).ReplaceAllString(strings.TrimSpace(text), "; ")
	return fmt.Errorf("not valid YAML: %s (lines are counted from the start of the document)", text)
}

// items gives a list's members, a single object as itself, and nothing for an empty document.
func items(value any) []any {
	if value == nil {
		return nil
	}
	if list, ok := value.(map[string]any); ok && list["kind"] == "List" && list["apiVersion"] == "v1" {
		if members, ok := list["items"].([]any); ok {
			return members
		}
	}
	return []any{value}
}

// decodeObject finds out the kind of a document and decodes it.
func decodeObject(value any, file string, document int) (*Object, Mistakes) {
	object := &Object{File: file, Document: document}
	fields, ok := value.(map[string]any)
	if !ok {
		err := errors.New("not an object; a document starts with apiVersion, kind and metadata")
		return nil, Mistakes{{File: file, Document: document, Err: err}}
	}
	metadata, _ := fields["metadata"].(map[string]any)
	object.Kind, _ = fields["kind"].(string)
	object.Namespace, _ = metadata["namespace"].(string)
	object.Name, _ = metadata["name"].(string)
	k, err := kindOf(fields)
	if err != nil {
		return nil, object.place(field.ErrorList{err})
	}
	if k.namespaced && object.Namespace == "" {
		object.Namespace = "default"
	}
	var found shape
	if !found.check(fields, k.typ, nil) {
		return nil, object.place(found.errs)
	}
	wrong := slices.DeleteFunc(checkMetadata(object, k), found.isFollowUp)
	mistakes := object.place(append(found.errs, wrong...))
	if err := object.fill(fields, k); err != nil {
		return nil, append(mistakes, &Mistake{File: file, Document: document, Object: object.String(), Err: err})
	}
	if len(mistakes) > 0 {
		return nil, append(mistakes, object.otherMistakes(&found, wrong)...)
	}
	return object, nil
}

// otherMistakes checks the meaning of what is left of an object whose shape or metadata is wrong, and keeps back what
// may only follow from that. An object whose namespace is in doubt is not judged: a policy is about its namespace.
func (o *Object) otherMistakes(found *shape, metadata field.ErrorList) Mistakes {
	const namespace = "metadata.namespace"
	for _, path := range found.damaged {
		if isWithin(namespace, path) {
			return nil
		}
	}
	for _, err := range metadata {
		if err.Field == namespace {
			return nil
		}
	}
	_, mistakes := o.records("")
	return slices.DeleteFunc(mistakes, func(m *Mistake) bool {
		var err *field.Error
		return !errors.As(m.Err, &err) || found.isFollowUp(err)
	})
}

// fill decodes the fields that fit into the kind's type and keeps their canonical text.
// fields must have passed a shape, or encoding/json would drop what it does not know.
func (o *Object) fill(fields map[string]any, k kind) error {
	text, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("encode object: %w", err)
	}
	o.value = reflect.New(k.typ).Interface()
	if err := json.Unmarshal(text, o.value); err != nil {
		return fmt.Errorf("decode object: %w", err)
	}
	o.JSON, err = canonical(fields, o.Namespace)
	return err
}

// canonical is the object without what only the API server needs, so that a change of those fields is no change.
// Agents compare policies by this text: one that only differs in what the server has added must not be compiled again,
// and a status that its controller rewrites every minute must not wake every node. encoding/json sorts the keys of maps,
// which makes the text the same for equal objects.
func canonical(fields map[string]any, namespace string) ([]byte, error) {
	fields = maps.Clone(fields)
	delete(fields, "status")
	metadata, _ := fields["metadata"].(map[string]any)
	if metadata = maps.Clone(metadata); metadata == nil {
		metadata = map[string]any{} // it was wrong as a whole, and taken out
	}
	for _, name := range []string{"managedFields", "resourceVersion", "generation", "creationTimestamp", "selfLink", "uid"} {
		delete(metadata, name)
	}
	if annotations, ok := metadata["annotations"].(map[string]any); ok {
		annotations = maps.Clone(annotations)
		delete(annotations, corev1.LastAppliedConfigAnnotation)
		metadata["annotations"] = annotations
		if len(annotations) == 0 {
			delete(metadata, "annotations")
		}
	}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	fields["metadata"] = metadata
	return json.Marshal(fields)
}

// kindOf finds the kind that a document says it is.
func kindOf(fields map[string]any) (kind, *field.Error) {
	apiVersion, _ := fields["apiVersion"].(string)
	name, _ := fields["kind"].(string)
	if apiVersion == "" {
		return kind{}, field.Required(field.NewPath("apiVersion"), "say which kind of object this is; known are "+KnownKinds())
	}
	if name == "" {
		return kind{}, field.Required(field.NewPath("kind"), "say which kind of object this is; known are "+KnownKinds())
	}
	var versions []string
	for _, k := range kinds() {
		if k.name == name && k.apiVersion == apiVersion {
			return k, nil
		}
		if k.name == name {
			versions = append(versions, k.apiVersion)
		}
	}
	if len(versions) > 0 {
		return kind{}, field.Invalid(field.NewPath("apiVersion"), apiVersion, fmt.Sprintf("kind %s is read as %s", name, strings.Join(versions, " or ")))
	}
	if name == tendril.KindIdentity && apiVersion == tendril.APIVersion {
		return kind{}, field.Forbidden(field.NewPath("kind"),
			"the operator writes an Identity for each identity that pods have; remove it, and give pods that are to have it these labels and this service account")
	}
	return kind{}, field.Invalid(field.NewPath("kind"), name, "not a kind that tendril reads; known are "+KnownKinds())
}

// KnownKinds lists the kinds that Decode reads, for messages.
func KnownKinds() string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return strings.Join(slices.Compact(names), ", ") // a kind of two versions stands twice
}

// checkMetadata makes sure that names can stand in keys of the store.
// Names become parts of keys, separated by slashes: one with a slash could stand for another object. The API server holds
// them to the same syntax, RFC 1123's, so nothing that it accepts is refused.
func checkMetadata(o *Object, k kind) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("metadata")
	if o.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), "give the object a name"))
	} else {
		for _, text := range validation.IsDNS1123Subdomain(o.Name) {
			errs = append(errs, field.Invalid(at.Child("name"), o.Name, text))
		}
	}
	if !k.namespaced {
		if o.Namespace != "" {
			errs = append(errs, field.Forbidden(at.Child("namespace"), "a "+k.name+" belongs to no namespace; remove the field"))
		}
		return errs
	}
	for _, text := range validation.IsDNS1123Label(o.Namespace) {
		errs = append(errs, field.Invalid(at.Child("namespace"), o.Namespace, text))
	}
	return errs
}

// Sort orders objects by kind (what others refer to first), namespace and name.
// So namespaces come ahead of the pods whose labels they complete, and a reader of the output finds kinds together.
func Sort(objects []*Object) {
	rank := map[string]int{}
	for i, k := range kinds() {
		rank[k.name] = i
	}
	slices.SortStableFunc(objects, func(a, b *Object) int {
		if d := rank[a.Kind] - rank[b.Kind]; d != 0 {
			return d
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
}
