// What every suite needs: the SDK's client as its users make it, and the names to ask for.
// Endpoint, region and keys come from the environment alone (AWS_ENDPOINT_URL_RDS_DATA, …).

import { RDSDataClient } from "@aws-sdk/client-rds-data";

export const arns = {
  resourceArn: process.env.RESOURCE_ARN,
  secretArn: process.env.SECRET_ARN,
};

export const database = process.env.DATABASE;

export const newClient = (options = {}) => new RDSDataClient(options);
