CREATE TYPE "mood" AS ENUM ('sad', 'glad');
--> statement-breakpoint
CREATE TABLE "maker" (
	"id" serial PRIMARY KEY,
	"name" text NOT NULL UNIQUE
);
--> statement-breakpoint
CREATE TABLE "item" (
	"id" uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	"maker_id" integer REFERENCES "maker" ("id"),
	"title" varchar(100) NOT NULL,
	"price" numeric(10, 2),
	"mood" "mood" DEFAULT 'glad',
	"data" jsonb,
	"tags" text[] DEFAULT '{}' NOT NULL,
	"made_on" date,
	"made_at" time,
	"seen" timestamp with time zone,
	"changed" timestamp,
	"weight" double precision,
	"sold" boolean DEFAULT false NOT NULL,
	"many" bigint
);
