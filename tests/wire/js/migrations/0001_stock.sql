ALTER TABLE "item" ADD COLUMN "stock" integer DEFAULT 0 NOT NULL;
--> statement-breakpoint
CREATE INDEX "item_title" ON "item" ("title");
