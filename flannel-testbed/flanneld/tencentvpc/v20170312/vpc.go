// Package v20170312 takes the place of Tencent's SDK, a hundred times the size of flanneld itself. It has what flanneld needs to
// compile; the tencent-vpc backend, which nothing here uses, reports that it is missing.
package v20170312

import "errors"

var errMissing = errors.New("this flanneld was built without Tencent's SDK")

type (
	Client struct{}

	Filter struct {
		Name   *string
		Values []*string
	}
	Route struct {
		RouteId              *uint64
		DestinationCidrBlock *string
		GatewayType          *string
		GatewayId            *string
		RouteType            *string
		Enabled              *bool
	}
	RouteTable struct {
		RouteTableId *string
		RouteSet     []*Route
	}

	CreateRoutesRequest struct {
		RouteTableId *string
		Routes       []*Route
	}
	CreateRoutesResponse struct{}
	DeleteRoutesRequest  struct {
		RouteTableId *string
		Routes       []*Route
	}
	DeleteRoutesResponse       struct{}
	DescribeRouteTablesRequest struct {
		Filters []*Filter
	}
	DescribeRouteTablesResponse struct {
		Response *struct{ RouteTableSet []*RouteTable }
	}
)

func NewClientWithSecretId(id, key, region string) (*Client, error) { return nil, errMissing }

func NewCreateRoutesRequest() *CreateRoutesRequest { return &CreateRoutesRequest{} }

func NewDeleteRoutesRequest() *DeleteRoutesRequest { return &DeleteRoutesRequest{} }

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

func (*Client) CreateRoutes(*CreateRoutesRequest) (*CreateRoutesResponse, error) {
	return nil, errMissing
}

func (*Client) DeleteRoutes(*DeleteRoutesRequest) (*DeleteRoutesResponse, error) {
	return nil, errMissing
}

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errMissing
}
